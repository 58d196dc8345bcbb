//! Single slices: the reason of each end, and the vCPU between them.

use super::*;
use crate::vm::power::PowerState;

const START: Start = Start {
    entry: ENTRY,
    context: 7,
};

#[test]
fn each_slice_tells_why_it_has_ended() {
    let vm = vm(2);
    vm.turn_on(VcpuId(1), START).unwrap();
    let service = FakeService::answering([ServiceReply::Wait; 2]);
    let answered = check(|regs| assert_eq!(regs.x[..4], [1, 2, 3, 4]));
    let script = [
        out(exit(WFI)),
        call(0xc600_0002, [7, 8, 9]),
        answered,
        call(CPU_OFF, [0; 3]),
        check(|regs| assert_eq!((regs.pc, regs.x[0]), (ENTRY, 7))),
    ];
    let mut cpu = FakeCpu::new(0, &Lines::new(1), script);
    let mut vcpu = Vcpu::bind(&vm, VcpuId(0), CpuId(0)).unwrap();
    let mut slice = |loads| {
        let end = vcpu.run_slice(&mut cpu, &(), &service);
        assert_eq!((cpu.loaded, cpu.loads.len()), (false, loads));
        end
    };
    assert_eq!(slice(1), SliceEnd::Waiting, "in WFI");
    {
        let pause = vm.pause(|_| {});
        assert!(pause.is_complete(), "a vCPU that waits needn't be woken");
        assert_eq!(slice(1), SliceEnd::Paused);
    }
    assert_eq!(slice(2), SliceEnd::Waiting, "for its service");
    assert_eq!(
        slice(2),
        SliceEnd::Waiting,
        "and is not loaded to ask again"
    );
    let answer = ServiceReply::Return([1, 2, 3, 4]);
    service.replies.lock().unwrap().push_back(answer);
    assert_eq!(slice(3), SliceEnd::Waiting, "off");
    assert_eq!(vm.power_state(VcpuId(0)), PowerState::Off);
    assert_eq!(slice(3), SliceEnd::Waiting, "still off");
    vm.turn_on(VcpuId(0), START).unwrap();
    assert_eq!(slice(4), SliceEnd::Ended, "it has powered the VM off");
    assert_eq!(slice(4), SliceEnd::Ended);
    assert!(cpu.script.is_empty());
}

#[test]
fn a_vcpu_goes_on_on_the_cpu_that_binds_it_next() {
    let vm = vm(1);
    let (service, lines) = (FakeService::default(), Lines::new(2));
    let mut first = FakeCpu::new(0, &lines, [out(exit(WFI))]);
    let after_wait = check(|regs| assert_eq!(regs.pc, ENTRY + 4));
    let mut second = FakeCpu::new(1, &lines, [after_wait]);
    let mut vcpu = Vcpu::bind(&vm, VcpuId(0), CpuId(0)).unwrap();
    assert_eq!(vcpu.run_slice(&mut first, &(), &service), SliceEnd::Waiting);
    assert!(Vcpu::bind(&vm, VcpuId(0), CpuId(1)).is_none());
    drop(vcpu);
    assert_eq!(vm.cpu_of(VcpuId(0)), None);
    let mut vcpu = Vcpu::bind(&vm, VcpuId(0), CpuId(1)).unwrap();
    assert_eq!(vcpu.run_slice(&mut second, &(), &service), SliceEnd::Ended);
    assert!(second.script.is_empty());
}

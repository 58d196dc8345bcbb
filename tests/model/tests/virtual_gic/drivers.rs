//! The accesses of operating systems that no package of Debian's brings: FreeBSD's and Zephyr's drivers, register by register.

use crate::world::{D, SGI, SPIS, World, affinity};
use vgic::{Frame, Width};

const CTLR: u64 = 0;
const TYPER: u64 = 4;
const IGROUPR: u64 = 0x80;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ICPENDR: u64 = 0x280;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const IGRPMODR: u64 = 0xd00;
const IROUTER: u64 = 0x6000;
const PIDR2: u64 = 0xffe8;
const WAKER: u64 = 0x14;
/// Register write pending, of the distributor and of a redistributor.
const RWP: [u64; 2] = [1 << 31, 1 << 3];
const PROCESSOR_SLEEP: u64 = 1 << 1;
const CHILDREN_ASLEEP: u64 = 1 << 2;
const LAST: u64 = 1 << 4;
/// The UART's interrupt.
const UART: u32 = 33;
/// The virtual timer's.
const TIMER: u32 = 27;

/// A driver on a vCPU, which was found to have this redistributor.
struct Driver<'w> {
    world: &'w mut World,
    vcpu: usize,
    own: Frame,
}

impl<'w> Driver<'w> {
    /// Looks through the redistributors for the one of its affinity, as all drivers do.
    fn probe(world: &'w mut World, vcpu: usize) -> Self {
        for number in 0.. {
            let frame = Frame::Redistributor(number);
            assert_eq!(world.read(vcpu, frame, PIDR2) >> 4 & 15, 3, "a GICv3");
            let kind = world.read_sized(vcpu, frame, 8, Width::Double);
            if kind >> 32 == u64::from(affinity(vcpu)) {
                let own = frame;
                return Self { world, vcpu, own };
            }
            assert_eq!(kind & LAST, 0, "no redistributor for vCPU {vcpu}");
        }
        unreachable!("the last one ends the search");
    }

    fn read(&mut self, frame: Frame, offset: u64) -> u64 {
        self.world.read(self.vcpu, frame, offset)
    }

    fn write(&mut self, frame: Frame, offset: u64, value: u64) {
        self.world.write(self.vcpu, frame, offset, value);
    }

    /// Polls RWP, as often as its CPUs may need to see a change.
    fn wait_for_writes(&mut self, frame: Frame) {
        let bit = RWP[usize::from(frame != D)];
        for _ in 0..4 {
            if self.read(frame, CTLR) & bit == 0 {
                return;
            }
            self.world.settle();
        }
        panic!("RWP of {frame:?} stays set");
    }

    /// Where an interrupt's registers are: the frame, and the base of the SGI frame.
    fn place(&self, intid: u32) -> (Frame, u64) {
        match intid {
            ..32 => (self.own, SGI),
            _ => (D, 0),
        }
    }

    fn write_bit(&mut self, register: u64, intid: u32) {
        let (frame, base) = self.place(intid);
        let offset = base + register + u64::from(intid / 32 * 4);
        self.write(frame, offset, 1 << (intid % 32));
    }

    fn wake(&mut self) {
        let own = self.own;
        let waker = self.read(own, WAKER);
        self.write(own, WAKER, waker & !PROCESSOR_SLEEP);
        assert_eq!(self.read(own, WAKER) & CHILDREN_ASLEEP, 0);
    }
}

/// FreeBSD 14, sys/arm64/arm64/gic_v3.c.
mod freebsd {
    use super::*;

    pub fn init_distributor(driver: &mut Driver<'_>) {
        let interrupts = (driver.read(D, TYPER) & 31) * 32 + 32;
        assert_eq!(interrupts, 32 + SPIS as u64);
        driver.write(D, CTLR, 0);
        driver.wait_for_writes(D);
        for first in (32..interrupts).step_by(32) {
            driver.write(D, IGROUPR + first / 8, 0xffff_ffff);
        }
        for first in (32..interrupts).step_by(16) {
            driver.write(D, ICFGR + first / 4, 0);
        }
        for first in (32..interrupts).step_by(4) {
            driver.write(D, IPRIORITYR + first, 0x8080_8080);
        }
        for first in (32..interrupts).step_by(32) {
            driver.write(D, ICENABLER + first / 8, 0xffff_ffff);
        }
        driver.wait_for_writes(D);
        // ARE, groups 1 and 0.
        driver.write(D, CTLR, 0x13);
        let to = affinity(0).into();
        for intid in 32..interrupts {
            let (vcpu, offset) = (driver.vcpu, IROUTER + intid * 8);
            (driver.world).write_sized(vcpu, D, offset, Width::Double, to);
            let route = (driver.world).read_sized(vcpu, D, offset, Width::Double);
            assert_eq!(route, to);
        }
    }

    pub fn init_redistributor(driver: &mut Driver<'_>) {
        let own = driver.own;
        driver.wake();
        driver.write(own, SGI + IGROUPR, 0xffff_ffff);
        driver.write(own, SGI + ICENABLER, 0xffff_0000);
        driver.write(own, SGI + ISENABLER, 0x0000_ffff);
        for first in (0..32).step_by(4) {
            driver.write(own, SGI + IPRIORITYR + first, 0x8080_8080);
        }
        driver.wait_for_writes(own);
    }

    /// Sets an interrupt up: its trigger by a changed word of ICFGR, then its enable bit.
    pub fn set_up(driver: &mut Driver<'_>, intid: u32, edge: bool) {
        let (frame, base) = driver.place(intid);
        let offset = base + ICFGR + u64::from(intid / 16 * 4);
        let bit = 2 << (intid % 16 * 2);
        let old = driver.read(frame, offset);
        driver.write(frame, offset, if edge { old | bit } else { old & !bit });
        driver.wait_for_writes(frame);
        driver.write_bit(ISENABLER, intid);
    }

    pub fn disable(driver: &mut Driver<'_>, intid: u32) {
        driver.write_bit(ICENABLER, intid);
        let (frame, _) = driver.place(intid);
        driver.wait_for_writes(frame);
    }
}

/// Zephyr 3, drivers/interrupt_controller/intc_gicv3.c, in the non-secure state.
mod zephyr {
    use super::*;

    pub fn init_distributor(driver: &mut Driver<'_>) {
        let interrupts = (driver.read(D, TYPER) & 31) * 32 + 32;
        driver.write(D, CTLR, 0);
        driver.wait_for_writes(D);
        for first in (32..interrupts).step_by(32) {
            let word = first / 8;
            driver.write(D, ICENABLER + word, 0xffff_ffff);
            driver.wait_for_writes(D);
            driver.write(D, IGROUPR + word, 0xffff_ffff);
            driver.write(D, IGRPMODR + word, 0);
        }
        for first in (32..interrupts).step_by(4) {
            driver.write(D, IPRIORITYR + first, 0xa0a0_a0a0);
        }
        for first in (32..interrupts).step_by(16) {
            driver.write(D, ICFGR + first / 4, 0);
        }
        // ARE and group 1.
        driver.write(D, CTLR, 0x12);
        assert_eq!(driver.read(D, CTLR) & 0x13, 0x12);
    }

    pub fn init_redistributor(driver: &mut Driver<'_>) {
        let own = driver.own;
        driver.wake();
        driver.write(own, SGI + ICENABLER, 0xffff_ffff);
        driver.wait_for_writes(own);
        driver.write(own, SGI + ICPENDR, 0xffff_ffff);
        driver.write(own, SGI + IGROUPR, 0xffff_ffff);
        driver.write(own, SGI + IGRPMODR, 0);
        for first in (0..32).step_by(4) {
            driver.write(own, SGI + IPRIORITYR + first, 0xa0a0_a0a0);
        }
        driver.write(own, SGI + ICFGR + 4, 0);
    }

    /// Sets an interrupt up: off, its priority by a byte, its trigger, its route to this CPU, on.
    pub fn set_up(driver: &mut Driver<'_>, intid: u32, priority: u8) {
        let (frame, base) = driver.place(intid);
        driver.write_bit(ICENABLER, intid);
        driver.wait_for_writes(frame);
        let (vcpu, offset) = (driver.vcpu, base + IPRIORITYR + u64::from(intid));
        (driver.world).write_sized(vcpu, frame, offset, Width::Byte, priority.into());
        let word = driver.read(frame, offset & !3);
        assert_eq!((word >> (offset % 4 * 8)) as u8, priority);
        let trigger = base + ICFGR + u64::from(intid / 16 * 4);
        let level = driver.read(frame, trigger) & !(2 << (intid % 16 * 2));
        driver.write(frame, trigger, level);
        if intid >= 32 {
            let route = IROUTER + u64::from(intid) * 8;
            let to = affinity(vcpu).into();
            (driver.world).write_sized(vcpu, D, route, Width::Double, to);
        }
        driver.write_bit(ISENABLER, intid);
        // Many a driver asks whether it is on.
        let on = base + ISENABLER + u64::from(intid / 32 * 4);
        assert_ne!(driver.read(frame, on) & 1 << (intid % 32), 0);
    }
}

/// The device has its line up until it was served.
fn takes_a_level(world: &mut World, vcpu: usize) {
    world.set_level(UART, true);
    assert_eq!(world.acknowledge(vcpu), Some(UART));
    world.set_level(UART, false);
    world.end(vcpu, UART);
    assert_eq!(world.take(vcpu), None);
}

#[test]
fn freebsd_sets_all_cpus_up_and_takes_interrupts() {
    let mut world = World::new(3, 4);
    for vcpu in 0..3 {
        let mut driver = Driver::probe(&mut world, vcpu);
        if vcpu == 0 {
            freebsd::init_distributor(&mut driver);
        }
        freebsd::init_redistributor(&mut driver);
        freebsd::set_up(&mut driver, TIMER, false);
        world.cpus[vcpu].hw.open(0xf8, false, true);
    }
    freebsd::set_up(&mut Driver::probe(&mut world, 0), UART, false);
    takes_a_level(&mut world, 0);
    for vcpu in 0..3 {
        world.take_physical(vcpu, TIMER);
        assert_eq!(world.take(vcpu), Some(TIMER));
        world.send(0, vcpu, 5);
        assert_eq!(world.take(vcpu), Some(5));
    }
    // It masks an interrupt while it serves it, and lets it come again afterwards.
    world.set_level(UART, true);
    assert_eq!(world.acknowledge(0), Some(UART));
    freebsd::disable(&mut Driver::probe(&mut world, 0), UART);
    world.end(0, UART);
    assert_eq!(world.take(0), None);
    freebsd::set_up(&mut Driver::probe(&mut world, 0), UART, false);
    assert_eq!(world.take(0), Some(UART));
    // One that is held by another CPU is off once RWP is.
    world.set_level(UART, false);
    assert_eq!(world.take(0), None);
    world.set_level(UART, true);
    world.settle();
    freebsd::disable(&mut Driver::probe(&mut world, 2), UART);
    assert_eq!(world.cpus[0].hw.holds(UART), None);
}

#[test]
fn zephyr_sets_its_cpus_up_and_takes_interrupts() {
    let mut world = World::new(2, 4);
    for vcpu in 0..2 {
        let mut driver = Driver::probe(&mut world, vcpu);
        if vcpu == 0 {
            zephyr::init_distributor(&mut driver);
        }
        zephyr::init_redistributor(&mut driver);
        zephyr::set_up(&mut driver, TIMER, 0xa0);
        // Its reschedule interrupt.
        zephyr::set_up(&mut driver, 0, 0xa0);
        world.cpus[vcpu].hw.open(0xf0, false, true);
    }
    zephyr::set_up(&mut Driver::probe(&mut world, 1), UART, 0x80);
    takes_a_level(&mut world, 1);
    for vcpu in 0..2 {
        world.take_physical(vcpu, TIMER);
        assert_eq!(world.take(vcpu), Some(TIMER));
        world.send(1 - vcpu, vcpu, 0);
        assert_eq!(world.take(vcpu), Some(0));
    }
}

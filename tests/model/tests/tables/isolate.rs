//! A write that unmaps the rest of its block, beside somebody who maps other memory where the rest was: the block may still
//! be in TLBs then, and a break can't be spared.
// Miri doesn't know how the schedules switch stacks.
#![cfg(not(miri))]

use std::sync::Arc;

use model::{System, backing_of, explore};
use shuttle::thread;
use stage2::{
    Access, Attributes, Bbm, Features, Granule, Ipa, Layout, Level, Mapping, OnBlock, Pa,
    Permissions, Request, TlbPolicy,
};

/// What is mapped where the rest of the block was.
const OTHER: Pa = Pa::new(0x60_0000_0000);

fn isolate(bbm: Bbm) {
    let layout = Layout::small(
        Level::L1,
        Features {
            granule: Granule::Size4K,
            bbm,
            ..Features::armv8_0(40, 48)
        },
    );
    let policy = TlbPolicy {
        range: true,
        level_hint: true,
        most_instructions: 64,
    };
    let system = Arc::new(System::new(layout, 3, policy));
    let page = move |index: u64| Ipa::new(index * layout.page_size());
    let block = Mapping {
        pa: backing_of(page(0)),
        attributes: Attributes::memory(Permissions::LOGGED),
        largest: Level::L2,
    };
    let span = page(0)..page(4);
    let mapped = system.on(0, |worker| {
        (system.stage2()).map(worker, span, block, || true)
    });
    assert_eq!(mapped.expect("enough frames").leaves, 1);
    let isolating = move |machine: Arc<System>| {
        let request = Request {
            ipa: page(0),
            va: None,
            access: Access::Write,
            pa: backing_of(page(0)),
            largest: Level::L3,
            attributes: Attributes::memory(Permissions::RAM),
            largest_written: Level::L3,
            on_block: OnBlock::Isolate,
        };
        let _ = machine.access(0, &request);
    };
    let mapping = move |machine: Arc<System>| {
        let other = Mapping {
            pa: OTHER,
            largest: Level::L3,
            ..block
        };
        let pages = page(1)..page(2);
        let mapped = machine.on(1, |worker| {
            (machine.stage2()).map(worker, pages, other, || true)
        });
        mapped.expect("enough frames");
    };
    let reading = move |machine: Arc<System>| {
        machine.speculate(2, page(1));
        machine.guest(2, page(1), Access::Read);
    };
    let threads = [
        thread::spawn({
            let machine = system.clone();
            move || isolating(machine)
        }),
        thread::spawn({
            let machine = system.clone();
            move || mapping(machine)
        }),
        thread::spawn({
            let machine = system.clone();
            move || reading(machine)
        }),
    ];
    for thread in threads {
        thread.join().expect("the thread ends");
    }
    system.check();
    let system = Arc::into_inner(system).expect("the threads have ended");
    system.destroy();
}

#[test]
fn the_rest_of_an_isolated_block_is_in_no_tlb_before_it_may_be_mapped() {
    explore(300, |_| isolate(Bbm::Level0));
    explore(300, |_| isolate(Bbm::Level2));
}

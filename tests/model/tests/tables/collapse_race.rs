//! What a collapse owes for a table that it has frozen and can't make a block of.

use std::cell::RefCell;

use model::{Backing, Ground, Machine, Operation, Span, perform};
use stage2::{
    Attributes, Counters, Descriptor, Features, Ipa, IpaRange, Level, Permissions, Regime, Step,
    Tlb, Worker,
};

/// A TLB whose invalidations of a range give another CPU a moment.
struct Meanwhile<F>(F);

impl<F: Fn()> Tlb for Meanwhile<F> {
    fn invalidate_leaf(&self, _: Regime, _: Ipa, _: Option<Level>) {}
    fn invalidate_range(&self, _: Regime, _: IpaRange, _: bool) {
        (self.0)();
    }
    fn invalidate_vmid(&self, _: Regime) {}
    fn invalidate_all_vmids(&self) {}
    fn invalidate_local(&self, _: Regime, _: Ipa, _: Option<Level>, _: Option<u64>) {}
    fn publish_tables(&self) {}
}

/// An unmap that was in the table already takes a page out between the collapse's look at the table and its freeze. What
/// hardware has noted of the other pages must reach somebody: the collapse's exchanges removed them (rule 5).
#[test]
fn a_collapse_that_an_unmap_has_spoilt_tells_what_was_dirty() {
    for unmapped in [0, 1, 3] {
        collapse_spoilt_by_an_unmap_of(unmapped);
    }
}

/// Page 2 is dirty.
fn collapse_spoilt_by_an_unmap_of(unmapped: u16) {
    let ground = Ground::small(
        Level::L2,
        Features {
            hardware_access: true,
            hardware_dirty: true,
            ..Features::armv8_0(32, 48)
        },
    );
    let machine = Machine::new(*ground.layout());
    let stage2 = &machine.stage2;
    let told = RefCell::new(Vec::new());
    machine.on(0, |cpu| {
        let map = Operation::Map {
            span: Span::Tables(0, 0),
            backing: Backing::First,
            largest: Level::L3,
            attributes: Attributes::memory(Permissions::LOGGED_BY_HARDWARE),
        };
        perform(stage2, cpu, &ground, map);
        let write = Operation::Touch {
            place: 2,
            write: true,
        };
        perform(stage2, cpu, &ground, write);
        let block = ground.range(Span::Tables(0, 0));
        stage2
            .walk(cpu, block.clone(), |context| {
                if let Descriptor::Table(_) = context.descriptor {
                    return Step::Descend;
                }
                if context.ipa != ground.page(unmapped) {
                    return Step::Continue;
                }
                // This CPU unmaps the page, and the other one merges the table at the same time.
                let taken = RefCell::new(None);
                let tlb = Meanwhile(|| {
                    let locked = context.lock();
                    *taken.borrow_mut() = Some(locked.expect("nobody has frozen it yet"));
                });
                let other = Worker {
                    memory: cpu.memory,
                    tlb: &tlb,
                    epoch: cpu.epoch,
                    counters: &Counters::default(),
                };
                let collapsed = stage2
                    .collapse(
                        &other,
                        block.clone(),
                        Level::L2,
                        |_| Permissions::LOGGED_BY_HARDWARE,
                        |_, ipa, leaf| {
                            if leaf.dirty() {
                                told.borrow_mut().push(ipa);
                            }
                        },
                    )
                    .unwrap();
                assert_eq!(collapsed.blocks, 0);
                let taken = taken.into_inner().expect("an invalidation");
                let broken = taken.flush(cpu.tlb, stage2.regime(), stage2.layout());
                assert!(broken.make_leaf(None).is_err(), "frozen");
                Step::Stop
            })
            .unwrap();
    });
    assert!(machine.lookup(ground.page(2)).is_none());
    let told = told.into_inner();
    assert!(told.contains(&ground.page(2)), "page 2 was written to");
    machine.destroy();
}

//! Which VMID an invalidation is for, while the VM gets another one, under every interleaving: rule 12.
//!
//! Store buffering: one CPU changes an entry and then reads the VMID, the other one stores a VMID and then walks. If
//! neither sees the other, the invalidation goes to the old VMID, and what the walk has found stays in a TLB under the
//! new one. Bounds: two CPUs, each a thread, beside a main thread that waits for them; one page; every number of
//! preemptions that makes a difference.

use model::checked::regimes::explore;

#[test]
fn rule_12_a_vm_that_starts_beside_an_invalidation_has_no_stale_entry() {
    explore(6, [|cpu| cpu.protect(), |cpu| cpu.start()], |cpu| {
        cpu.assert_protected()
    });
}

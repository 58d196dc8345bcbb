//! Forks of running VMs, under every interleaving with writes and copies: a fork is of one moment, page by page (rule 3), on the
//! VMs of [`model::checked::vms`].
//!
//! Bounds: one page in trees of two levels with four entries each; up to three VMs; two or three CPUs, each a thread, beside a
//! main thread that waits; at most so many preemptions per execution as the first argument of `explore` says. Of what takes
//! the lock of an address space's owner, one at a time.

use model::checked::vms::{Cpu, DIRECT, explore, forked_and_read, written};

/// What the child got, whenever that was, stays.
fn the_fork_is_of_one_moment(cpu: &Cpu<'_>) {
    let (parent, child) = (cpu.read(0), cpu.read(1));
    assert_eq!(parent, cpu.world.expected(0), "a write is lost");
    assert!((1..=parent).contains(&child));
    cpu.write(0);
    assert_eq!(
        cpu.read(1),
        child,
        "rule 3: the child sees its parent's write"
    );
    cpu.write(1);
    assert_eq!(
        cpu.read(0),
        parent + 1,
        "rule 3: the parent sees its child's"
    );
}

#[test]
fn rule_3_a_fork_beside_a_write_is_of_one_moment() {
    explore(
        4,
        2,
        DIRECT,
        written,
        [|cpu| cpu.fork_running(0, 1), |cpu| cpu.write(0)],
        the_fork_is_of_one_moment,
    );
}

#[test]
fn rule_3_a_fork_beside_two_writers_is_of_one_moment() {
    explore(
        2,
        2,
        DIRECT,
        written,
        [
            |cpu| cpu.fork_running(0, 1),
            |cpu| cpu.write(0),
            |cpu| cpu.write(0),
        ],
        the_fork_is_of_one_moment,
    );
}

/// Of what is shared already, beside its copy.
#[test]
fn rule_3_a_fork_beside_a_copy_is_of_one_moment() {
    explore(
        2,
        3,
        DIRECT,
        forked_and_read,
        [|cpu| cpu.fork_running(0, 2), |cpu| cpu.write(0)],
        |cpu| {
            let (parent, other, child) = (cpu.read(0), cpu.read(1), cpu.read(2));
            assert_eq!((parent, other), (2, 1));
            assert!((1..=2).contains(&child));
            cpu.write(0);
            assert_eq!((cpu.read(1), cpu.read(2)), (1, child));
        },
    );
}

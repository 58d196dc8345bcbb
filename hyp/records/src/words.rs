//! The words of options and records.

use core::fmt;

/// A value that a word stands for.
pub trait Word: Copy + Eq + 'static {
    /// All values.
    const ALL: &'static [Self];
    /// The words, as errors list them.
    const EXPECTED: &'static str;

    /// The word.
    fn word(self) -> &'static str;
}

/// A tool's option accepts the alias after `|`, too.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident: $expected:literal {
        $($(#[$about:meta])* $value:ident = $word:literal $(| $alias:literal)?,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
        pub enum $type {
            $(
                $(#[$about])*
                #[cfg_attr(feature = "clap", value(name = $word $(, alias = $alias)?))]
                $value,
            )*
        }

        impl $type {
            /// Its word in options and results.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)*
                }
            }
        }

        impl Word for $type {
            const ALL: &'static [Self] = &[$(Self::$value),*];
            const EXPECTED: &'static str = $expected;

            fn word(self) -> &'static str {
                self.name()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

words! {
    /// How stage-2 operations exclude each other.
    Mode: "parallel, rwlock or mutex" {
        /// No lock at all.
        Parallel = "parallel",
        /// Faults share a lock, everything else excludes them.
        RwLock = "rwlock",
        /// One lock for everything.
        Mutex = "mutex",
    }
}

impl Mode {
    /// The modes that are compared unless the user chooses.
    pub const COMPARED: [Mode; 3] = [Mode::Mutex, Mode::RwLock, Mode::Parallel];
}

words! {
    /// The backing of guest memory: the size of its pieces, which is also the largest block that maps it.
    Backing: "4K, 2M or 1G" {
        /// Pages of 4 KiB.
        Page4K = "4K",
        /// Blocks of 2 MiB.
        Block2M = "2M",
        /// Blocks of 1 GiB.
        Block1G = "1G",
    }
}

impl Backing {
    /// The size of a piece.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Page4K => 4 << 10,
            Self::Block2M => 2 << 20,
            Self::Block1G => 1 << 30,
        }
    }
}

words! {
    /// The kind of guest.
    GuestKind: "dirty_log, stress, backing, program or linux" {
        /// The dirty-log benchmark's.
        DirtyLog = "dirty_log",
        /// The same image, for the stress run.
        Stress = "stress",
        /// The same image, for the workloads that change its backing memory.
        Backing = "backing",
        /// A program that runs until it ends by itself.
        Program = "program",
        /// An operating system that expects QEMU's virt machine.
        Linux = "linux",
    }
}

impl GuestKind {
    /// Whether the guest is the user's own, not the benchmark's.
    pub const fn is_foreign(self) -> bool {
        matches!(self, Self::Program | Self::Linux)
    }
}

words! {
    /// What becomes of a guest that asks for a reset.
    OnReset: "restart or stop" {
        /// It starts again, from the same files.
        Restart = "restart",
        /// Its run has failed.
        Stop = "stop",
    }
}

words! {
    /// A feature of the CPU with state of its own, which a guest has if it is asked for.
    CpuFeature: "sve, debug or pmu" {
        /// Vectors and predicates of SVE.
        Sve = "sve",
        /// Breakpoints, watchpoints and software step.
        Debug = "debug",
        /// The performance monitors: event and cycle counters.
        Pmu = "pmu",
    }
}

words! {
    /// What becomes of a guest that has crashed: it can't go on.
    OnCrash: "stop or restart" {
        /// Its run has failed.
        Stop = "stop",
        /// It starts again, from the same files, unless it does nothing but crash.
        Restart = "restart",
    }
}

words! {
    /// How the output of a guest's UART reaches the console.
    ConsoleMode: "lines or raw" {
        /// In whole lines that are marked as the guest's.
        Lines = "lines",
        /// Byte by byte, and the console's input goes to the guest. Of several guests one has the input, and each line is marked
        /// by the name of its guest.
        Raw = "raw",
    }
}

words! {
    /// When blocks that are larger than the granularity of the log are split.
    Split: "fault, none or eager" {
        /// A write fault splits the whole block.
        Fault = "fault",
        /// A write fault unmaps the block and maps the one page.
        None = "none",
        /// Blocks are split ahead of the faults.
        Eager = "eager",
    }
}

words! {
    /// How a write is noticed.
    Tracking: "writeprotect or hardware" {
        /// The first write to a page faults.
        WriteProtect = "writeprotect",
        /// The CPU marks the page.
        Hardware = "hardware",
    }
}

words! {
    /// The granularity of the log.
    Granularity: "4K or 2M" {
        /// Pages.
        Page4K = "4K",
        /// Whole blocks of 2 MiB, which aren't split.
        Block2M = "2M",
    }
}

words! {
    /// The form of the log.
    Harvest: "bitmap or ring" {
        /// A bitmap for each slot.
        Bitmap = "bitmap",
        /// A ring for each vCPU, and the bitmap behind it.
        Ring = "ring",
    }
}

words! {
    /// How the log is enabled.
    Enable: "protect, all_set or overlapped" {
        /// Write-protect everything.
        Protect = "protect",
        /// Write-protect everything, after any splitting, while the vCPUs access their memory.
        Overlapped = "overlapped",
        /// Call everything dirty, and write-protect at the first clearing.
        AllSet = "all_set" | "all-set",
    }
}

words! {
    /// How the log is cleared.
    Clear: "manual or with_get" {
        /// Apart from getting it.
        Manual = "manual",
        /// Together with getting it.
        WithGet = "with_get" | "with-get",
    }
}

words! {
    /// When blocks that logging has split are restored.
    Restore: "at_once, background or never" {
        /// Puts them together before it returns.
        AtOnce = "at_once" | "at-once",
        /// Puts them together afterwards, while the guest runs.
        Background = "background",
        /// Leaves them.
        Never = "never",
    }
}

words! {
    /// The workloads that change backing memory.
    Workload: "invalidate, cow, merge, prefault or reclaim" {
        /// CPUs invalidate ranges next to those that vCPUs fault in.
        Invalidate = "invalidate",
        /// A VM is forked, and the fork reads and writes every page.
        Cow = "cow",
        /// Equal pages of two VMs are merged.
        Merge = "merge",
        /// Memory is populated ahead of its first access.
        Prefault = "prefault",
        /// A VM has less memory than it uses.
        Reclaim = "reclaim",
    }
}

words! {
    /// Which faults an invalidation makes try again.
    Tracker: "ranges or sequence" {
        /// Those in its range.
        Ranges = "ranges",
        /// Those in its VM, as in KVM on arm64.
        Sequence = "sequence",
    }
}

words! {
    /// How a page that is mapped gets another frame.
    Change: "direct or unmap" {
        /// The new frame is put into its entries.
        Direct = "direct",
        /// It is unmapped, and faults map it again.
        Unmap = "unmap",
    }
}

words! {
    /// Memory of a guest whose equal pages are merged.
    MergeTarget: "test, ram or both" {
        /// The benchmark's test memory.
        Test = "test",
        /// All else that the guest has, or a program's memory.
        Ram = "ram",
    }
}

words! {
    /// How the hypervisor and its guests were built.
    Profile: "quick or best" {
        /// In half a minute: optimized, but each crate by itself.
        Quick = "quick",
        /// Optimized as a whole, which takes minutes, for measuring and publishing.
        Best = "best",
    }
}

words! {
    /// The mitigations of speculation at exits from guests.
    Mitigations: "auto, on or off" {
        /// Those that the CPUs need, if the guest is a user's program.
        Auto = "auto",
        /// Those that the CPUs need.
        On = "on",
        /// None.
        Off = "off",
    }
}

words! {
    /// A test of the hypervisor that runs instead of a guest.
    SelfTest: "stage2, panic, undef, stack, null, wx, nx or nested" {
        /// Compares the engine's tables with the answers of the CPU's table walker.
        Stage2 = "stage2",
        /// Panics.
        Panic = "panic",
        /// Executes an undefined instruction.
        Undefined = "undef",
        /// Overflows its stack.
        Stack = "stack",
        /// Reads page 0.
        Null = "null",
        /// Writes to its instructions.
        WriteText = "wx",
        /// Executes data.
        ExecuteData = "nx",
        /// Fails while it reports a failure.
        Nested = "nested",
    }
}

words! {
    /// A bug that the debug build has on request.
    Bug: "no-flush, no-break, local or no-publish" {
        /// A TLB flush that does nothing.
        NoFlush = "no-flush",
        /// A block stays valid while it is replaced by a table.
        NoBreak = "no-break",
        /// Invalidations reach only the CPU that issues them.
        Local = "local",
        /// Tables are linked without the barrier that makes their contents visible to walkers.
        NoPublish = "no-publish",
    }
}

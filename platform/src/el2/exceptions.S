// The EL2 exception vectors (Arm ARM D1.3.1).
//
// From a lower level they go to the world switch. From EL2 itself an exception is fatal, unless the instruction that
// took it has an entry in the table of those that may (recover.rs): interrupts are always masked there. The registers
// are saved in this CPU's own data and the report runs on its emergency stack, so nothing here relies on the stack that
// was in use.

// The one register that is free while a guest is loaded: the compare value of EL2's own timer, which is off but in an
// idle CPU's wait (timer.rs), where no exception is recovered from.
.macro el2_vector number, target
    .balign 0x80
    msr cnthp_cval_el2, x0
    mrs x0, tpidr_el2
    cbz x0, exception_too_early
    str x1, [x0, #{frame} + 8]
    mov x1, #\number
    b \target
.endm

// What an exit begins with where the CPU may have been made to speculate at EL2 as the guest likes (speculation.rs).
// The stack is that of `world_enter`; flags, TPIDR_EL2 and what the guest's registers are kept in aren't the guest's
// any more.
.macro guest_vector target
    .balign 0x80
    b \target
.endm

.macro guest_vector_clearing target
    .balign 0x80
    hint #22                            // CLRBHB
    isb
    b \target
.endm

// x0 = how many branches are taken, not 0.
.macro take_branches
1:  b 2f
2:  subs x0, x0, #1
    b.ne 1b
    dsb nsh
    isb
.endm

.macro guest_vector_looping target
    .balign 0x80
    str x0, [sp, #-16]!
    mrs x0, tpidr_el2
    ldr x0, [x0, #{loops}]
    take_branches
    ldr x0, [sp], #16
    b \target
.endm

// The call keeps x4 to x30 (DEN0028, section 2.6).
.macro guest_vector_calling target
    .balign 0x80
    stp x0, x1, [sp, #-32]!
    stp x2, x3, [sp, #16]
    mrs x0, tpidr_el2
    ldr x0, [x0, #{workaround}]
    smc #0
    mrs x0, tpidr_el2
    ldr x0, [x0, #{loops}]
    cbz x0, 3f
    take_branches
3:  ldp x2, x3, [sp, #16]
    ldp x0, x1, [sp], #32
    b \target
.endm

.macro vectors name, guest_vector
.balign 0x800
.global \name
\name:
    el2_vector 0, fatal_entry
    el2_vector 1, fatal_entry
    el2_vector 2, fatal_entry
    el2_vector 3, fatal_entry

    el2_vector 4, recover
    el2_vector 5, fatal_entry
    el2_vector 6, fatal_entry
    el2_vector 7, recover

    \guest_vector guest_exit_sync
    \guest_vector guest_exit_irq
    \guest_vector guest_exit_irq
    \guest_vector guest_exit_serror

    \guest_vector guest_exit_sync
    \guest_vector guest_exit_irq
    \guest_vector guest_exit_irq
    \guest_vector guest_exit_serror
    .balign 0x80
.endm

.section .text.vectors, "ax"
    vectors el2_vectors, guest_vector
    vectors el2_vectors_clearing, guest_vector_clearing
    vectors el2_vectors_looping, guest_vector_looping
    vectors el2_vectors_calling, guest_vector_calling

// Goes on where the table says, if the exception is a data abort or an SError at an instruction that has an entry there.
// All that it was taken with but ELR_EL2, SPSR_EL2, ESR_EL2 and FAR_EL2 is as it was: of the guest's in these nothing is
// needed any more, but for what is said of its last exit when it is stopped.
// x0 = PerCpu, x1 = vector; the interrupted x0 in CNTHP_CVAL_EL2, x1 in the frame.
recover:
    stp x2, x3, [x0, #{frame} + 16]
    stp x4, x5, [x0, #{frame} + 32]
    mrs x2, esr_el2
    ubfx x2, x2, #26, #6
    cmp x2, #{data_abort}
    mov x3, #{serror}
    ccmp x2, x3, #4, ne
    b.ne 3f
    mrs x2, elr_el2
    adrp x3, __recovery_start
    add x3, x3, :lo12:__recovery_start
    adrp x4, __recovery_end
    add x4, x4, :lo12:__recovery_end
1:  cmp x3, x4
    b.hs 3f
    ldrsw x5, [x3]
    add x5, x5, x3
    cmp x5, x2
    b.eq 2f
    add x3, x3, #8
    b 1b
2:  add x3, x3, #4
    ldrsw x5, [x3]
    add x5, x5, x3
    msr elr_el2, x5
    ldp x4, x5, [x0, #{frame} + 32]
    ldp x2, x3, [x0, #{frame} + 16]
    ldr x1, [x0, #{frame} + 8]
    mrs x0, cnthp_cval_el2
    eret
    dsb nsh
    isb
3:  ldp x4, x5, [x0, #{frame} + 32]
    ldp x2, x3, [x0, #{frame} + 16]

// x0 = PerCpu, x1 = vector; the interrupted x0 in CNTHP_CVAL_EL2, x1 in the frame.
fatal_entry:
    stp x2, x3, [x0, #{frame} + 16]
    ldr x2, [x0, #{depth}]
    add x2, x2, #1
    str x2, [x0, #{depth}]
    cmp x2, #3                          // faulted while reporting, and again while powering off
    b.hs exception_too_early
    mrs x2, cnthp_cval_el2
    str x2, [x0, #{frame}]
    stp x4, x5, [x0, #{frame} + 32]
    stp x6, x7, [x0, #{frame} + 48]
    stp x8, x9, [x0, #{frame} + 64]
    stp x10, x11, [x0, #{frame} + 80]
    stp x12, x13, [x0, #{frame} + 96]
    stp x14, x15, [x0, #{frame} + 112]
    stp x16, x17, [x0, #{frame} + 128]
    stp x18, x19, [x0, #{frame} + 144]
    stp x20, x21, [x0, #{frame} + 160]
    stp x22, x23, [x0, #{frame} + 176]
    stp x24, x25, [x0, #{frame} + 192]
    stp x26, x27, [x0, #{frame} + 208]
    stp x28, x29, [x0, #{frame} + 224]
    mov x2, sp
    stp x30, x2, [x0, #{frame} + 240]
    mrs x2, elr_el2
    mrs x3, spsr_el2
    stp x2, x3, [x0, #{frame} + 256]
    mrs x2, esr_el2
    mrs x3, far_el2
    stp x2, x3, [x0, #{frame} + 272]
    str x1, [x0, #{frame} + 288]
    msr spsel, #1
    ldr x2, [x0, #{emergency_top}]
    mov sp, x2
    mov x29, xzr
    bl {report}
exception_too_early:
    movz x19, #0x5041, lsl #48
    movk x19, #0x5256, lsl #32
    movk x19, #{early_fault}
    b boot_park

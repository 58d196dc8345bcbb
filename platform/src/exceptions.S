// The EL2 exception vectors (Arm ARM D1.3.1).
//
// From a lower level they go to the world switch. From EL2 itself every exception is fatal: interrupts are always masked
// there. The registers are saved in this CPU's own data and the report runs on its emergency stack, so nothing here relies on
// the stack that was in use.

.macro fatal_vector number
    .balign 0x80
    msr tpidr_el0, x0                   // the guest's, which is lost with the machine
    mov x0, #\number
    b fatal_entry
.endm

.macro guest_vector target
    .balign 0x80
    b \target
.endm

.section .text.vectors, "ax"
.balign 0x800
.global el2_vectors
el2_vectors:
    fatal_vector 0
    fatal_vector 1
    fatal_vector 2
    fatal_vector 3

    fatal_vector 4
    fatal_vector 5
    fatal_vector 6
    fatal_vector 7

    guest_vector guest_exit_sync
    guest_vector guest_exit_irq
    guest_vector guest_exit_irq
    guest_vector guest_exit_serror

    guest_vector guest_exit_sync
    guest_vector guest_exit_irq
    guest_vector guest_exit_irq
    guest_vector guest_exit_serror
    .balign 0x80

// x0 = vector, the interrupted x0 in TPIDR_EL0.
fatal_entry:
    msr tpidrro_el0, x1
    mrs x1, tpidr_el2
    cbz x1, 1f
    stp x2, x3, [x1, #{frame} + 16]
    ldr x2, [x1, #{depth}]
    add x2, x2, #1
    str x2, [x1, #{depth}]
    cmp x2, #3                          // faulted while reporting, and again while powering off
    b.hs 1f
    mrs x2, tpidr_el0
    mrs x3, tpidrro_el0
    stp x2, x3, [x1, #{frame}]
    stp x4, x5, [x1, #{frame} + 32]
    stp x6, x7, [x1, #{frame} + 48]
    stp x8, x9, [x1, #{frame} + 64]
    stp x10, x11, [x1, #{frame} + 80]
    stp x12, x13, [x1, #{frame} + 96]
    stp x14, x15, [x1, #{frame} + 112]
    stp x16, x17, [x1, #{frame} + 128]
    stp x18, x19, [x1, #{frame} + 144]
    stp x20, x21, [x1, #{frame} + 160]
    stp x22, x23, [x1, #{frame} + 176]
    stp x24, x25, [x1, #{frame} + 192]
    stp x26, x27, [x1, #{frame} + 208]
    stp x28, x29, [x1, #{frame} + 224]
    mov x2, sp
    stp x30, x2, [x1, #{frame} + 240]
    mrs x2, elr_el2
    mrs x3, spsr_el2
    stp x2, x3, [x1, #{frame} + 256]
    mrs x2, esr_el2
    mrs x3, far_el2
    stp x2, x3, [x1, #{frame} + 272]
    str x0, [x1, #{frame} + 288]
    msr spsel, #1
    ldr x2, [x1, #{emergency_top}]
    mov sp, x2
    mov x29, xzr
    mov x0, x1
    bl {report}
1:  movz x19, #0x5041, lsl #48
    movk x19, #0x5256, lsl #32
    movk x19, #0x11
    b boot_park

// Boot at EL2, the way into the guest and back, and the guest.

    .section .text.entry, "ax"
    .global entry
entry:
    adrp    x0, stack_end
    add     x0, x0, :lo12:stack_end
    mov     sp, x0
    adr     x0, vectors
    msr     vbar_el2, x0
    // EL2's own translation: tables of stage 2 must be reached as write-back, inner-shareable memory, as the walker does.
    mov     x0, #0x00ff                     // attribute 0: write-back; 1: Device-nGnRnE
    msr     mair_el2, x0
    ldr     x0, =0x80823519                 // RES1, 40-bit addresses, walks write-back and inner shareable, 39 bits
    msr     tcr_el2, x0
    adrp    x0, HYPERVISOR_TABLE
    add     x0, x0, :lo12:HYPERVISOR_TABLE
    msr     ttbr0_el2, x0
    tlbi    alle2
    dsb     sy
    isb
    ldr     x0, =0x30c51835                 // RES1, I, C, M, SA
    msr     sctlr_el2, x0
    isb
    bl      hypervisor
1:  wfi
    b       1b

    .balign 2048
vectors:
    .rept   8                               // from EL2 itself: nothing that it expects
    .balign 128
    b       unexpected
    .endr
    .balign 128                             // from the guest, synchronous
    b       leave_guest
    .rept   7
    .balign 128
    b       unexpected
    .endr

unexpected:
    mrs     x0, esr_el2
    mrs     x1, elr_el2
    bl      fatal

// Runs the guest until it has an exception. x0: its registers: x0 to x30, ELR, SPSR.
    .text
    .global run_guest
run_guest:
    stp     x19, x20, [sp, #-96]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    msr     tpidr_el2, x0
    ldp     x1, x2, [x0, #248]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret

leave_guest:
    str     x0, [sp, #-16]!
    mrs     x0, tpidr_el2
    str     x1, [x0, #8]
    ldr     x1, [sp], #16
    str     x1, [x0]
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    mrs     x1, elr_el2
    mrs     x2, spsr_el2
    stp     x1, x2, [x0, #248]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    ldp     x19, x20, [sp], #96
    ret

// The guest. It runs with its MMU off, at IPA 0, and has RAM at x1: writes pages, and says so by HVC.
    .section .guest, "ax"
    .balign 4096
    .global GUEST
GUEST:
    mov     x2, #0                          // the first round: pages 0 to 3
1:  add     x3, x1, x2, lsl #12
    str     x2, [x3]
    add     x2, x2, #1
    cmp     x2, #4
    b.ne    1b
    hvc     #1
    add     x3, x1, #0x1000                 // the second: pages 1 and 3
    str     x2, [x3]
    str     x2, [x3, #0x2000]
    hvc     #2
2:  b       2b

// The world switch (Arm ARM D1.4): what every entry to and exit from a guest does. System registers and FP registers
// are the guest's all the time that it is loaded; only the general ones change hands here.

// x0 = the guest's general registers, x1 and x2 = a server of its writes and the function that calls it. Returns, after the
// guest has exited, why: an ExitReason in x0.
.global world_enter
world_enter:
    stp x29, x30, [sp, #-128]!
    mov x29, sp
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp x0, x1, [sp, #96]
    str x2, [sp, #112]
    ldp x1, x2, [x0, #{pc}]
    msr elr_el2, x1
    msr spsr_el2, x2
    ldp x2, x3, [x0, #{x} + 16]
    ldp x4, x5, [x0, #{x} + 32]
    ldp x6, x7, [x0, #{x} + 48]
    ldp x8, x9, [x0, #{x} + 64]
    ldp x10, x11, [x0, #{x} + 80]
    ldp x12, x13, [x0, #{x} + 96]
    ldp x14, x15, [x0, #{x} + 112]
    ldp x16, x17, [x0, #{x} + 128]
    ldp x18, x19, [x0, #{x} + 144]
    ldp x20, x21, [x0, #{x} + 160]
    ldp x22, x23, [x0, #{x} + 176]
    ldp x24, x25, [x0, #{x} + 192]
    ldp x26, x27, [x0, #{x} + 208]
    ldp x28, x29, [x0, #{x} + 224]
    ldr x30, [x0, #{x} + 240]
    ldp x0, x1, [x0, #{x}]
    eret
    // Nothing is to be speculated past an exception return.
    dsb nsh
    isb

// The guest's exits, from the lower-level vectors: on the stack of `world_enter`, all other registers the guest's. Below
// its frame lie 176 bytes, for the registers that a call changes.
.macro guest_exit name, reason
.global \name
\name:
    stp x0, x1, [sp, #-176]!
    mov x0, #\reason
    b guest_exit
.endm

    guest_exit guest_exit_irq, {interrupt}
    guest_exit guest_exit_serror, {system_error}

// Writes that stage 2 forbids are served here, without the guest's registers going anywhere but those that a call changes:
// ELR_EL2 and SPSR_EL2 stay as they are.
.global guest_exit_sync
guest_exit_sync:
    stp x0, x1, [sp, #-176]!
    mrs x0, esr_el2
    ubfx x1, x0, #26, #6
    ubfx x0, x0, #{write_shift}, #{write_bits}
    cmp x1, #{data_abort}
    ccmp x0, #{forbidden_write}, #0, eq
    b.eq serve_write
    mov x0, #{synchronous}

// x0 = the reason; the guest's x0 and x1 on the stack.
guest_exit:
    ldr x1, [sp, #176 + 96]
    stp x2, x3, [x1, #{x} + 16]
    ldp x2, x3, [sp], #176
    stp x2, x3, [x1, #{x}]
    mrs x3, elr_el2
    mrs x2, spsr_el2
    stp x4, x5, [x1, #{x} + 32]
    stp x6, x7, [x1, #{x} + 48]
    stp x8, x9, [x1, #{x} + 64]
    stp x10, x11, [x1, #{x} + 80]
    stp x12, x13, [x1, #{x} + 96]
    stp x14, x15, [x1, #{x} + 112]
    stp x16, x17, [x1, #{x} + 128]
    stp x18, x19, [x1, #{x} + 144]
    stp x20, x21, [x1, #{x} + 160]
    stp x22, x23, [x1, #{x} + 176]
    stp x24, x25, [x1, #{x} + 192]
    stp x26, x27, [x1, #{x} + 208]
    stp x28, x29, [x1, #{x} + 224]
    str x30, [x1, #{x} + 240]
    stp x3, x2, [x1, #{pc}]
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp x29, x30, [sp], #128
    ret

serve_write:
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x29, [sp, #144]
    str x30, [sp, #160]
    ldp x0, x1, [sp, #176 + 104]
    // A backtrace goes on with the frame of `world_enter`, and never with one that the guest says.
    add x29, sp, #176
    blr x1
    ldp x2, x3, [sp, #16]
    ldp x4, x5, [sp, #32]
    ldp x6, x7, [sp, #48]
    ldp x8, x9, [sp, #64]
    ldp x10, x11, [sp, #80]
    ldp x12, x13, [sp, #96]
    ldp x14, x15, [sp, #112]
    ldp x16, x17, [sp, #128]
    ldp x18, x29, [sp, #144]
    ldr x30, [sp, #160]
    cbnz x0, 1f
    ldp x0, x1, [sp], #176
    eret
    dsb nsh
    isb
    // It comes out after all: x0 is one more than the reason.
1:  sub x0, x0, #1
    b guest_exit

// Completes what was accessed while the guest was loaded, and takes the SError that came of it, if one did. Returns its
// syndrome in x0, or 0. SErrors are unmasked from here on: those that come later are EL2's own.
//
// With FEAT_RAS it is ESB that sees to it that the error of an access that was made is pending; without, ESB does
// nothing, and DSB is all there is (Arm ARM D17.4, B2.3.12).
.global world_take_error
world_take_error:
    dsb sy
    mov x0, xzr
    msr daifclr, #4
1:  hint #16                            // ESB
2:  isb
3:  ret
4:  cbnz x0, 3b                         // the first one tells
    mrs x0, esr_el2
    b 1b                                // ESB may find another
    .pushsection .recovery, "a"
    .balign 4
    .long 1b - ., 4b - .
    .long 2b - ., 4b - .
    .long 3b - ., 4b - .
    .popsection

// x0 = an FpState. q0 to q31, FPCR, FPSR.
.arch_extension fp
.arch_extension simd
.macro fp_registers operation
    \operation q0, q1, [x0, #{q}]
    \operation q2, q3, [x0, #{q} + 32]
    \operation q4, q5, [x0, #{q} + 64]
    \operation q6, q7, [x0, #{q} + 96]
    \operation q8, q9, [x0, #{q} + 128]
    \operation q10, q11, [x0, #{q} + 160]
    \operation q12, q13, [x0, #{q} + 192]
    \operation q14, q15, [x0, #{q} + 224]
    \operation q16, q17, [x0, #{q} + 256]
    \operation q18, q19, [x0, #{q} + 288]
    \operation q20, q21, [x0, #{q} + 320]
    \operation q22, q23, [x0, #{q} + 352]
    \operation q24, q25, [x0, #{q} + 384]
    \operation q26, q27, [x0, #{q} + 416]
    \operation q28, q29, [x0, #{q} + 448]
    \operation q30, q31, [x0, #{q} + 480]
.endm

.global world_load_fp
world_load_fp:
    fp_registers ldp
    add x0, x0, #{fpcr}
    ldp x1, x2, [x0]
    msr fpcr, x1
    msr fpsr, x2
    ret

.global world_save_fp
world_save_fp:
    fp_registers stp
    mrs x1, fpcr
    mrs x2, fpsr
    add x0, x0, #{fpcr}
    stp x1, x2, [x0]
    ret
.arch_extension nosimd
.arch_extension nofp

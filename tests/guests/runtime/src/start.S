// The way from the arm64 Linux boot protocol and from PSCI CPU_ON to Rust.
//
// The stage-1 table is constant, so the MMU and the caches go on before anything is written to memory: nothing that a
// cache may hold of it can be stale. No atomic instruction runs before that either.

.section .text.head, "ax"
.global _start
_start:
    b 1f
    .long 0
    .quad 0                             // text_offset
    .quad __image_size                  // image_size, all of it in the file
    .quad 0xa                           // little-endian, 4 KiB pages, anywhere in memory
    .quad 0
    .quad 0
    .quad 0
    .ascii "ARM\x64"
    .long 0

1:  mov x20, x0
    bl enable_mmu
    adrp x0, end_magic
    ldr x0, [x0, :lo12:end_magic]
    ldr x1, ={magic}
    cmp x0, x1
    b.ne truncated
    // R_AARCH64_RELATIVE entries only: offset, type, addend.
    adrp x21, _start
    adrp x0, __rela_start
    add x0, x0, :lo12:__rela_start
    adrp x1, __rela_end
    add x1, x1, :lo12:__rela_end
2:  cmp x0, x1
    b.hs 3f
    ldp x2, x3, [x0]
    ldr x4, [x0, #16]
    add x0, x0, #24
    add x4, x4, x21
    str x4, [x21, x2]
    b 2b
3:  mov x0, xzr
    bl set_stack
    mov x0, x20
    bl {boot_main}

// Where PSCI starts the other vCPUs: x0 = the vCPU's index.
.global secondary_start
secondary_start:
    mov x20, x0
    bl enable_mmu
    mov x0, x20
    bl set_stack
    mov x0, x20
    bl {secondary_main}

truncated:
    ldr x0, ={report}
    mov x1, #{truncated_code}
    mov x2, xzr
    mov x3, xzr
    hvc #0
    b truncated

// x0 = index of the vCPU. Its frames end here.
set_stack:
    adrp x1, {stacks}
    add x1, x1, :lo12:{stacks}
    mov x2, #{stack_bytes}
    madd x1, x0, x2, x1
    add x1, x1, x2
    mov sp, x1
    mov x29, xzr
    ret

enable_mmu:
    msr daifset, #0xf
    msr spsel, #1
    adr x0, vectors
    msr vbar_el1, x0
    ldr x0, ={mair}
    msr mair_el1, x0
    // TCR_EL1.IPS is what ID_AA64MMFR0_EL1.PARange says, 48 bits at most.
    ldr x0, ={tcr}
    mrs x1, id_aa64mmfr0_el1
    and x1, x1, #0xf
    mov x2, #5
    cmp x1, x2
    csel x1, x1, x2, lo
    orr x0, x0, x1, lsl #32
    msr tcr_el1, x0
    adrp x0, {table}
    add x0, x0, :lo12:{table}
    msr ttbr0_el1, x0
    isb
    tlbi vmalle1
    ic iallu
    dsb nsh
    isb
    ldr x0, ={sctlr}
    msr sctlr_el1, x0
    isb
    ret
.ltorg

.balign 0x800
vectors:
.set vector, 0
.rept 16
    .balign 0x80
    sub sp, sp, #{frame_bytes}
    stp x0, x1, [sp]
    mov x1, #vector
    b enter_handler
    .set vector, vector + 1
.endr
    .balign 0x80

enter_handler:
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x19, [sp, #144]
    stp x20, x21, [sp, #160]
    stp x22, x23, [sp, #176]
    stp x24, x25, [sp, #192]
    stp x26, x27, [sp, #208]
    stp x28, x29, [sp, #224]
    mrs x2, elr_el1
    mrs x3, spsr_el1
    stp x30, x2, [sp, #240]
    str x3, [sp, #256]
    mov x0, sp
    bl {exception}
    ldr x3, [sp, #256]
    ldp x30, x2, [sp, #240]
    msr elr_el1, x2
    msr spsr_el1, x3
    ldp x28, x29, [sp, #224]
    ldp x26, x27, [sp, #208]
    ldp x24, x25, [sp, #192]
    ldp x22, x23, [sp, #176]
    ldp x20, x21, [sp, #160]
    ldp x18, x19, [sp, #144]
    ldp x16, x17, [sp, #128]
    ldp x14, x15, [sp, #112]
    ldp x12, x13, [sp, #96]
    ldp x10, x11, [sp, #80]
    ldp x8, x9, [sp, #64]
    ldp x6, x7, [sp, #48]
    ldp x4, x5, [sp, #32]
    ldp x2, x3, [sp, #16]
    ldp x0, x1, [sp]
    add sp, sp, #{frame_bytes}
    eret

// What the out-of-line atomic functions look at: LSE atomics aren't used.
.section .data, "aw"
.global __aarch64_have_lse_atomics
.hidden __aarch64_have_lse_atomics
__aarch64_have_lse_atomics:
    .byte 0

.section .end_magic, "aw"
end_magic:
    .quad {magic}

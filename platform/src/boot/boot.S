// The way from the arm64 Linux boot protocol to Rust, for the boot CPU and for those that PSCI starts.
//
// Boot CPU: header, tree check, clearing and relocation of the image with the MMU off, early tables, MMU and caches on,
// boot_main. Other CPUs: registers from boot_context, MMU on with the final tables, secondary_main.
//
// Until the MMU is on, memory is accessed past the caches: what may sit in them for the memory that is written here is
// invalidated before and after (Arm ARM B2.12). No atomic instruction runs before that.
// x20 holds the tree, x21 the image's address, x22 the exception level; TPIDR_EL1 the park code of a fault.

.macro park code
    movz x19, #0x5041, lsl #48
    movk x19, #0x5256, lsl #32
    movk x19, #\code
    b boot_park
.endm

.section .text.head, "ax"
.global _start
_start:
    b 1f
    .long 0
    .quad 0                             // text_offset
    .quad __image_size                  // image_size, with what isn't in the file
    .quad 0xa                           // little-endian, 4 KiB pages, anywhere in memory
    .quad 0
    .quad 0
    .quad 0
    .ascii "ARM\x64"
    .long 0

1:  msr daifset, #0xf
    mov x20, x0
    adr x21, _start
    mrs x22, CurrentEL
    ubfx x22, x22, #2, #2
    adr x0, boot_vectors
    cmp x22, #2
    b.hi 3f
    b.eq 2f
    msr vbar_el1, x0
    b 4f
2:  msr vbar_el2, x0
    b 4f
3:  msr vbar_el3, x0
4:  mov x1, #0x10                       // faults mean that there is no tree at x0, until it has been read
    msr tpidr_el1, x1
    isb

    // The tree's magic number; a tree is 8-byte aligned and at most 2 MiB (Linux booting.rst).
    tst x20, #7
    b.ne no_tree
    cbz x20, no_tree
    ldp w1, w2, [x20]
    rev w1, w1
    rev w2, w2
    movz w3, #0xd00d, lsl #16
    movk w3, #0xfeed
    cmp w1, w3
    b.ne no_tree
    mov w3, #0x200000
    cmp w2, w3
    b.hi no_tree
    mov x1, #0x11
    msr tpidr_el1, x1

    adrp x0, __bss_start
    adrp x1, __image_end
    bl invalidate_dcache
    adrp x0, __bss_start
    adrp x1, __bss_end
5:  stp xzr, xzr, [x0], #16
    cmp x0, x1
    b.lo 5b

    // R_AARCH64_RELATIVE entries only: offset, type, addend.
    adrp x0, __rela_start
    add x0, x0, :lo12:__rela_start
    adrp x1, __rela_end
    add x1, x1, :lo12:__rela_end
6:  cmp x0, x1
    b.hs 7f
    ldp x2, x3, [x0]
    ldr x4, [x0, #16]
    add x0, x0, #24
    cmp x3, #1027
    b.ne bad_relocation
    add x4, x4, x21
    str x4, [x21, x2]
    b 6b
7:
    // LSE atomics are used by the out-of-line atomic functions if this says so (ID_AA64ISAR0_EL1.Atomic).
    mrs x0, id_aa64isar0_el1
    ubfx x0, x0, #20, #4
    cmp x0, #2
    cset w0, hs
    adrp x1, __aarch64_have_lse_atomics
    strb w0, [x1, :lo12:__aarch64_have_lse_atomics]

    adrp x0, {boot_stacks}
    add x0, x0, :lo12:{boot_stacks}
    ldr x1, ={boot_stack_top}
    add x0, x0, x1
    mov x29, xzr
    mov x30, xzr
    cmp x22, #2
    b.eq 8f
    msr spsel, #1
    mov sp, x0
    mov x0, x20
    mov x1, x22
    b {wrong_level}

8:  msr spsel, #1
    mov sp, x0
    bl set_el2_controls
    mov x0, x20
    bl {build_early_tables}
    mov x23, x0
    adrp x0, __text_end
    adrp x1, __image_end
    bl invalidate_dcache
    adrp x0, {boot_context}
    add x0, x0, :lo12:{boot_context}
    mov x1, x23
    bl enable_mmu
    mov x0, x20
    mov x29, xzr
    bl {boot_main}

no_tree:
    park {no_device_tree}
bad_relocation:
    park {bad_relocation}
boot_fault:
    mrs x0, tpidr_el1
    movz x19, #0x5041, lsl #48
    movk x19, #0x5256, lsl #32
    orr x19, x19, x0
    b boot_park

// Waits for ever, with the code in x19 for whoever looks with a debugger.
.global boot_park
boot_park:
    wfe
    b boot_park

// Where a CPU started by PSCI arrives: EL2, MMU off, x0 = its PerCpu.
.global secondary_start
secondary_start:
    msr daifset, #0xf
    mov x20, x0
    mov x1, #0x11
    msr tpidr_el1, x1
    adr x1, boot_vectors
    mrs x2, CurrentEL
    cmp x2, #(2 << 2)
    b.ne boot_fault
    msr vbar_el2, x1
    msr spsel, #1
    isb
    bl set_el2_controls
    adrp x0, {boot_context}
    add x0, x0, :lo12:{boot_context}
    ldr x1, [x0, #{context_ttbr}]
    bl enable_mmu
    ldr x1, [x20, #{percpu_stack_top}]
    mov sp, x1
    msr tpidr_el2, x20
    mov x0, x20
    mov x29, xzr
    bl {secondary_main}

// The controls without which nothing below may be assumed: EL2 translation regime without VHE, MMU and caches off.
set_el2_controls:
    ldr x0, ={hcr_boot}
    msr hcr_el2, x0
    ldr x0, ={sctlr_off}
    msr sctlr_el2, x0
    msr tpidr_el2, xzr
    isb
    mrs x0, hcr_el2
    tbnz x0, #34, 9f
    ret
9:  park {vhe_only}                           // a CPU that has EL2 with VHE only

// x0 = boot_context, x1 = TTBR0_EL2.
enable_mmu:
    ldp x2, x3, [x0, #{context_mair}]   // and tcr
    ldr x4, [x0, #{context_sctlr}]
    msr mair_el2, x2
    msr tcr_el2, x3
    msr ttbr0_el2, x1
    isb
    tlbi alle2
    ic iallu
    dsb nsh
    isb
    msr sctlr_el2, x4
    isb
    ret

// switch_tables(ttbr, sctlr): from one identity map to another of other block sizes, so with the MMU off in between
// (Arm ARM D8.16.1). No data is accessed meanwhile.
.global switch_tables
switch_tables:
    dsb sy
    mrs x2, sctlr_el2
    bic x2, x2, #1
    msr sctlr_el2, x2
    isb
    msr ttbr0_el2, x0
    isb
    tlbi alle2
    dsb nsh
    isb
    msr sctlr_el2, x1
    isb
    ret

// Drops the lines of [x0, x1) from the data caches to the point of coherency.
invalidate_dcache:
    mrs x2, ctr_el0
    ubfx x2, x2, #16, #4
    mov x3, #4
    lsl x3, x3, x2
    sub x4, x3, #1
    bic x0, x0, x4
1:  dc ivac, x0
    add x0, x0, x3
    cmp x0, x1
    b.lo 1b
    dsb sy
    ret
.ltorg

.section .text.vectors, "ax"
.balign 0x800
boot_vectors:
.rept 16
    .balign 0x80
    b boot_fault
.endr
    .balign 0x80

.section .data, "aw"
.global __aarch64_have_lse_atomics
.hidden __aarch64_have_lse_atomics
__aarch64_have_lse_atomics:
    .byte 0

//! The identification registers at the end of a PrimeCell's 4 KiB: drivers find by them what is there.

/// The first register's offset.
pub(crate) const IDENTIFICATION: u64 = 0xfe0;
/// The PrimeCell's own four bytes, after the peripheral's.
const CELL: [u8; 4] = [0x0d, 0xf0, 0x05, 0xb1];

/// The register at `offset` of a peripheral with these four bytes; 0 elsewhere.
pub(crate) fn read(peripheral: [u8; 4], offset: u64) -> u32 {
    let index = offset.wrapping_sub(IDENTIFICATION) / 4;
    let mut bytes = peripheral.iter().chain(&CELL);
    let byte = usize::try_from(index).ok().and_then(|at| bytes.nth(at));
    byte.copied().unwrap_or(0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_registers_hold_a_byte_each() {
        let peripheral = [0x11, 0x10, 0x14, 0x00];
        let all = (0xfd8..0x1008).step_by(4);
        let all: Vec<u32> = all.map(|offset| read(peripheral, offset)).collect();
        let expected = [0, 0, 0x11, 0x10, 0x14, 0, 0x0d, 0xf0, 0x05, 0xb1, 0, 0];
        assert_eq!(all, expected);
        assert_eq!(read(peripheral, 0), 0);
        assert_eq!(read(peripheral, u64::MAX), 0);
    }
}

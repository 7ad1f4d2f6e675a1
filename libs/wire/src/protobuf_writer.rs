//! Protobuf's wire format, written.

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;

/// Appends fields to a message.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) out: Vec<u8>,
    /// Whoever writes what others sent stops beyond it.
    pub(crate) limit: usize,
}

/// Bytes of the length of a message whose content comes first.
const OPEN_LENGTH: usize = 5;

impl Writer {
    pub(crate) fn is_full(&self) -> bool {
        self.out.len() > self.limit
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.out.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.out.push(n as u8);
    }

    fn tag(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    pub(crate) fn number(&mut self, field: u32, n: u64) {
        self.tag(field, VARINT);
        self.varint(n);
    }

    pub(crate) fn fixed64(&mut self, field: u32, n: u64) {
        self.tag(field, FIXED64);
        self.out.extend_from_slice(&n.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, field: u32, content: &[u8]) {
        self.tag(field, BYTES);
        self.varint(content.len() as u64);
        self.out.extend_from_slice(content);
    }

    /// Begins a message field; its length is written by [`Self::close`].
    pub(crate) fn open(&mut self, field: u32) -> usize {
        self.tag(field, BYTES);
        self.out.extend_from_slice(&[0; OPEN_LENGTH]);
        self.out.len()
    }

    /// Ends the message field whose content begins at `start`.
    pub(crate) fn close(&mut self, start: usize) {
        let mut len = self.out.len().saturating_sub(start);
        let length = start.checked_sub(OPEN_LENGTH);
        let Some(length) = length.and_then(|at| self.out.get_mut(at..start)) else {
            return;
        };
        // As long as was left for it: a number may end in zeros that say nothing.
        for (i, byte) in length.iter_mut().enumerate() {
            let more = if i + 1 < OPEN_LENGTH { 0x80 } else { 0 };
            *byte = (len as u8 & 0x7f) | more;
            len >>= 7;
        }
    }
}

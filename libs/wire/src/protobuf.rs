//! Protobuf's wire format, read in place.

use crate::remote_write::{DecodeError, EncodedLabels};

/// Deepest nesting of unknown groups.
const GROUP_DEPTH_MAX: usize = 32;
/// Most unknown fields in one message and its parts.
const UNKNOWN_FIELDS_MAX: usize = 1 << 16;

/// Most bytes of a number of 64 bits.
const VARINT_BYTES_MAX: usize = 10;

pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const BYTES: u8 = 2;
const GROUP_START: u8 = 3;
const GROUP_END: u8 = 4;
const FIXED32: u8 = 5;

/// A cursor over one message within the request; offsets count from the request's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    unknown_left: usize,
}

/// A field's number and wire type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag {
    pub(crate) field: u32,
    pub(crate) wire_type: u8,
    at: usize,
}

impl Tag {
    /// Whether it is of the type it must be.
    pub(crate) fn expect(self, wire_type: u8) -> Result<(), DecodeError> {
        if self.wire_type == wire_type {
            return Ok(());
        }
        Err(DecodeError::WireType {
            field: self.field,
            wire_type: self.wire_type,
            at: self.at,
        })
    }
}

impl<'a> Reader<'a> {
    /// Over a whole request.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            end: bytes.len(),
            unknown_left: UNKNOWN_FIELDS_MAX,
        }
    }

    /// Whether the message has ended.
    #[inline]
    pub(crate) fn done(&self) -> bool {
        self.at >= self.end
    }

    fn short(&self) -> DecodeError {
        DecodeError::UnexpectedEnd { at: self.end }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let rest = self.bytes.get(..self.end).unwrap_or_default();
        let byte = rest.get(self.at).copied().ok_or_else(|| self.short())?;
        self.at += 1;
        Ok(byte)
    }

    /// A number of at most ten bytes.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        self.long_varint(u64::from(first & 0x7f))
    }

    /// The rest of a number whose first byte is not its last.
    fn long_varint(&mut self, mut value: u64) -> Result<u64, DecodeError> {
        let at = self.at - 1;
        let rest = self.bytes.get(self.at..self.end).unwrap_or_default();
        for (i, &byte) in rest.iter().take(VARINT_BYTES_MAX - 1).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * (i + 1));
            if byte < 0x80 {
                self.at += i + 1;
                return Ok(value);
            }
        }
        if rest.len() < VARINT_BYTES_MAX - 1 {
            return Err(self.short());
        }
        Err(DecodeError::NumberTooLong { at })
    }

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], DecodeError> {
        let rest = self.bytes.get(self.at..self.end).unwrap_or_default();
        let taken = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let taken = taken.ok_or_else(|| self.short())?;
        self.at += taken.len();
        Ok(taken)
    }

    /// A string or bytes field's content.
    #[inline]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.varint()?;
        self.take(len)
    }

    /// A message field of two strings, if it is written as most are: these tags in this order, nothing else, and every
    /// length in one byte. Passes over it then, and leaves anything else for the general way.
    #[inline]
    pub(crate) fn short_pair(&mut self, [outer, first, second]: [u8; 3]) -> Option<(&'a [u8], &'a [u8])> {
        const LONG: u8 = 0x80;
        let rest = self.bytes.get(self.at..self.end)?;
        let [o, len, f, a, tail @ ..] = rest else {
            return None;
        };
        if *o != outer || *f != first || (len | a) & LONG != 0 {
            return None;
        }
        let (name, tail) = tail.split_at_checked(usize::from(*a))?;
        let [s, b, tail @ ..] = tail else { return None };
        let whole = usize::from(*a) + usize::from(*b) + 4;
        if *s != second || b & LONG != 0 || usize::from(*len) != whole {
            return None;
        }
        let value = tail.get(..usize::from(*b))?;
        self.at += whole + 2;
        Some((name, value))
    }

    /// A reader over the fields that stand next, all begin with this tag, and are shorter than 16 KiB; passes over them.
    #[inline]
    pub(crate) fn leading(&mut self, tag: u8) -> Self {
        let rest = self.bytes.get(self.at..self.end).unwrap_or_default();
        let mut len = 0;
        while let Some([t, first, tail @ ..]) = rest.get(len..)
            && *t == tag
        {
            let (head, content) = match (*first, tail) {
                (short @ ..0x80, _) => (2, usize::from(short)),
                (low, [high @ ..0x80, ..]) => (3, usize::from(low & 0x7f) | usize::from(*high) << 7),
                _ => break,
            };
            if rest.len() - len < head + content {
                break;
            }
            len += head + content;
        }
        let fields = Self {
            end: self.at + len,
            ..*self
        };
        self.at += len;
        fields
    }

    /// What is left of the message, if it stands within the first 4 GiB of the request; else as if nothing were.
    pub(crate) fn encoded(&self) -> EncodedLabels<'a> {
        let bytes = self.bytes.get(self.at..self.end).unwrap_or_default();
        match (u32::try_from(self.at), u32::try_from(self.end)) {
            (Ok(at), Ok(_)) => EncodedLabels { at, bytes },
            _ => EncodedLabels::default(),
        }
    }

    /// A message field's content as a reader of its own.
    #[inline]
    pub(crate) fn message(&mut self) -> Result<Self, DecodeError> {
        let content = self.bytes()?;
        Ok(Self {
            bytes: self.bytes,
            at: self.at - content.len(),
            end: self.at,
            unknown_left: self.unknown_left,
        })
    }

    /// A double.
    #[inline]
    pub(crate) fn double(&mut self) -> Result<f64, DecodeError> {
        Ok(f64::from_bits(self.fixed64()?))
    }

    /// Eight bytes as a number.
    #[inline]
    pub(crate) fn fixed64(&mut self) -> Result<u64, DecodeError> {
        let bytes = self.take(8)?;
        let bytes = bytes.try_into().map_err(|_| self.short())?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The next field's tag.
    #[inline]
    pub(crate) fn tag(&mut self) -> Result<Tag, DecodeError> {
        let at = self.at;
        let tag = self.varint()?;
        let wire_type = (tag & 7) as u8;
        match u32::try_from(tag >> 3) {
            Ok(field) if field > 0 && wire_type <= FIXED32 => Ok(Tag { field, wire_type, at }),
            _ => Err(DecodeError::Tag { tag, at }),
        }
    }

    /// Calls `each` for every number of a repeated field, packed or not.
    pub(crate) fn numbers(
        &mut self,
        tag: Tag,
        unpacked: u8,
        mut each: impl FnMut(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        if tag.wire_type != BYTES {
            tag.expect(unpacked)?;
            return each(self);
        }
        let mut packed = self.message()?;
        while !packed.done() {
            each(&mut packed)?;
        }
        Ok(())
    }

    /// Passes over a field that this version does not know.
    pub(crate) fn skip(&mut self, tag: Tag) -> Result<(), DecodeError> {
        let (mut tag, mut depth) = (tag, 0usize);
        loop {
            self.unknown_left = self
                .unknown_left
                .checked_sub(1)
                .ok_or(DecodeError::TooDeep { at: tag.at })?;
            match tag.wire_type {
                VARINT => drop(self.varint()?),
                FIXED64 => drop(self.take(8)?),
                BYTES => drop(self.bytes()?),
                FIXED32 => drop(self.take(4)?),
                GROUP_START if depth == GROUP_DEPTH_MAX => return Err(DecodeError::TooDeep { at: tag.at }),
                GROUP_START => depth += 1,
                GROUP_END => {
                    depth = depth.checked_sub(1).ok_or_else(|| DecodeError::Tag {
                        tag: u64::from(tag.field) << 3 | u64::from(GROUP_END),
                        at: tag.at,
                    })?;
                }
                _ => return Err(DecodeError::TooDeep { at: tag.at }),
            }
            if depth == 0 {
                return Ok(());
            }
            tag = self.tag()?;
        }
    }
}

/// Undoes protobuf's zigzag of signed numbers.
pub(crate) fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

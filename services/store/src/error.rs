//! What callers are told about the bucket's and the blocks' errors.

use koios_block::BlockId;
use koios_bucket::Error as BucketError;
use koios_wire::{ServiceError, ServiceErrorCode};

/// An error of the bucket, for a caller.
pub(crate) fn from_bucket(e: &BucketError) -> ServiceError {
    let code = match e {
        BucketError::Block(e) => return from_block(e),
        BucketError::NotFound { .. } => ServiceErrorCode::NotFound,
        BucketError::Corrupt { .. } | BucketError::Lost { .. } => ServiceErrorCode::Corruption,
        BucketError::Unavailable { .. } | BucketError::Rejected { .. } => ServiceErrorCode::BucketUnavailable,
        e if e.is_transient() => ServiceErrorCode::Unavailable,
        _ => ServiceErrorCode::Internal,
    };
    ServiceError::new(code, e.to_string())
}

/// An error of opening a block, for a caller: damage names the block.
pub(crate) fn from_open(block: BlockId, e: &BucketError) -> ServiceError {
    match e {
        BucketError::Corrupt { .. } => ServiceError::new(
            ServiceErrorCode::Corruption,
            format!("block {block} failed checksum: {e}"),
        ),
        e => from_bucket(e),
    }
}

/// An error of a block, for a caller.
pub(crate) fn from_block(e: &koios_block::Error) -> ServiceError {
    match e {
        koios_block::Error::Corrupt { block, part, reason } => ServiceError::new(
            ServiceErrorCode::Corruption,
            format!("block {block} failed checksum: part {part} is corrupt: {reason}"),
        ),
        koios_block::Error::Samples {
            block,
            part,
            series,
            source,
        } => ServiceError::new(
            ServiceErrorCode::Corruption,
            format!(
                "block {block} failed checksum: part {part} is corrupt: samples of series {series}: {source}"
            ),
        ),
        koios_block::Error::Read { source, .. } => {
            let below = source.downcast_ref::<BucketError>().map(from_bucket);
            let code = below.map_or(ServiceErrorCode::Unavailable, |b| b.code);
            ServiceError::new(code, format!("{e}: {source}"))
        }
        koios_block::Error::Version { .. } => ServiceError::unavailable(e.to_string()),
        _ => ServiceError::internal(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i9_a_bucket_that_is_down_is_told_from_a_store_that_is() {
        let down = BucketError::Unavailable {
            object: "blocks/a".to_owned(),
            attempts: 3,
            reason: "timed out".to_owned(),
            source: None,
        };
        assert_eq!(from_bucket(&down).code, ServiceErrorCode::BucketUnavailable);
    }
}

//! From request headers to tenants.

use http::HeaderMap;
use koios_model::{TenantId, TenantIdError};

/// The header that names the tenant.
pub const TENANT_HEADER: &str = "X-Scope-OrgID";

/// Most tenants one query may name.
const TENANTS_MAX: usize = 64;

/// Why a request has no tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A header that says who asks came more than once.
    #[error("{header} header must appear once (actual: {count})")]
    Repeated {
        /// Which.
        header: &'static str,
        /// How often it came.
        count: usize,
    },
    /// The value holds bytes outside printable ASCII.
    #[error("tenant ID contains bytes outside of printable ASCII: allowed are [A-Za-z0-9_-]")]
    NotText,
    /// The value is no tenant id.
    #[error(transparent)]
    Id(#[from] TenantIdError),
    /// Several tenants where one is needed.
    #[error("tenant ID {value:?} names several tenants: writes go to one")]
    Several {
        /// The value as sent.
        value: String,
    },
    /// More tenants than one query may ask.
    #[error("tenant ID list names too many tenants (actual: {actual}, limit: {TENANTS_MAX})")]
    TooMany {
        /// How many.
        actual: usize,
    },
}

/// The tenant of a write: the header's, or the default one without the header.
///
/// # Errors
/// [`Error`], to be answered with 400.
pub fn tenant_of_write(headers: &HeaderMap) -> Result<TenantId, Error> {
    let Some(value) = header(headers)? else {
        return Ok(TenantId::anonymous());
    };
    if value.contains('|') {
        return Err(Error::Several {
            value: value.to_owned(),
        });
    }
    Ok(TenantId::new(value)?)
}

/// The tenants of a read, ascending and distinct: `a|b` asks both; the default one without the header.
///
/// # Errors
/// [`Error`], to be answered with 400.
pub fn tenants_of_read(headers: &HeaderMap) -> Result<Vec<TenantId>, Error> {
    let Some(value) = header(headers)? else {
        return Ok(vec![TenantId::anonymous()]);
    };
    let actual = value.split('|').count();
    if actual > TENANTS_MAX {
        return Err(Error::TooMany { actual });
    }
    let mut tenants = value
        .split('|')
        .map(TenantId::new)
        .collect::<Result<Vec<_>, _>>()?;
    tenants.sort();
    tenants.dedup();
    Ok(tenants)
}

fn header(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    // Whichever of two a gateway checked, the other could be the one that counts.
    for header in [TENANT_HEADER, "Authorization"] {
        let count = headers.get_all(header).iter().count();
        if count > 1 {
            return Err(Error::Repeated { header, count });
        }
    }
    let value = headers.get(TENANT_HEADER);
    value.map(|v| v.to_str().map_err(|_| Error::NotText)).transpose()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rstest::rstest;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for v in values {
            map.append(TENANT_HEADER, HeaderValue::from_bytes(v.as_bytes()).unwrap());
        }
        map
    }

    #[test]
    fn no_header_means_the_default_tenant() {
        assert_eq!(tenant_of_write(&HeaderMap::new()).unwrap().as_str(), "anonymous");
        assert_eq!(
            tenants_of_read(&HeaderMap::new()).unwrap(),
            [TenantId::anonymous()]
        );
    }

    #[rstest]
    #[case(&[""], "tenant ID is empty")]
    #[case(&["../../etc"], "tenant ID \"../../etc\" contains '.'")]
    #[case(&["a/b"], "tenant ID ")]
    #[case(&["%2e%2e"], "tenant ID ")]
    #[case(&["\u{430}bc"], "tenant ID ")]
    #[case(&["__markers__"], "tenant ID ")]
    #[case(&["a|b"], "tenant ID \"a|b\" names several")]
    #[case(&["a", "a"], "header must appear once")]
    fn refuses_a_write(#[case] values: &[&str], #[case] message: &str) {
        let error = tenant_of_write(&headers(values)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn two_credentials_are_refused() {
        let mut map = headers(&["a"]);
        for _ in 0..2 {
            map.append("authorization", HeaderValue::from_static("Bearer x"));
        }
        let error = tenant_of_write(&map).unwrap_err().to_string();
        assert_eq!(error, "Authorization header must appear once (actual: 2)");
    }

    #[test]
    fn a_read_may_name_several_each_once() {
        let got = tenants_of_read(&headers(&["b|a|b"])).unwrap();
        assert_eq!(got.iter().map(TenantId::as_str).collect::<Vec<_>>(), ["a", "b"]);
        for bad in ["a|", "|", "a||b", "a|../b"] {
            assert!(
                tenants_of_read(&headers(&[bad]))
                    .unwrap_err()
                    .to_string()
                    .starts_with("tenant ID ")
            );
        }
    }
}

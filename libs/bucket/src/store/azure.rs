//! Azure Blob Storage.

use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};

use super::{Env, check_key, client_options, no_retries, wrong};
use crate::Result;

const ENCRYPTION_KEY: &str = "AZURE_STORAGE_ENCRYPTION_KEY";
/// Names that Azure's command line gives to what the library calls otherwise.
const OTHER_NAMES: [(&str, AzureConfigKey); 3] = [
    ("AZURE_STORAGE_ACCOUNT", AzureConfigKey::AccountName),
    ("AZURE_STORAGE_KEY", AzureConfigKey::AccessKey),
    // Of App Service and Container Apps, for their managed identity.
    ("IDENTITY_ENDPOINT", AzureConfigKey::MsiEndpoint),
];

pub(super) fn open(url: &str, authority: &str, env: &Env) -> Result<MicrosoftAzure> {
    let place = Place::parse(url, authority)?;
    if let Some(key) = env.get(ENCRYPTION_KEY) {
        check_key(url, ENCRYPTION_KEY, key)?;
    }
    let settings = configured(MicrosoftAzureBuilder::new(), env);
    let named = settings.get_config_value(&AzureConfigKey::Endpoint);
    let options = client_options(named.as_deref());
    let mut builder = configured(MicrosoftAzureBuilder::new().with_client_options(options), env);
    if let Some((account, domain)) = place.account {
        builder = builder.with_account(account);
        if named.is_none() {
            builder = builder.with_endpoint(format!("https://{account}.blob.{domain}"));
        }
    }
    builder
        .with_retry(no_retries())
        .with_container_name(place.container)
        .build()
        .map_err(|e| wrong(url, without_key(&e)))
}

/// What an authority names: `container`, or `container@account.dfs.core.windows.net`.
struct Place<'a> {
    container: &'a str,
    /// With the domain of the cloud, such as `core.windows.net`.
    account: Option<(&'a str, &'a str)>,
}

impl<'a> Place<'a> {
    fn parse(url: &str, authority: &'a str) -> Result<Self> {
        let (container, host) = match authority.split_once('@') {
            Some((container, host)) => (container, Some(host)),
            None => (authority, None),
        };
        if container.is_empty() {
            return Err(wrong(
                url,
                "the container's name is missing: az://container/prefix",
            ));
        }
        let account = host.map(|host| {
            let (account, service) = host.split_once('.')?;
            let domain = service
                .strip_prefix("blob.")
                .or_else(|| service.strip_prefix("dfs."))?;
            (!account.is_empty() && !domain.is_empty()).then_some((account, domain))
        });
        match account {
            Some(None) => Err(wrong(
                url,
                "the account is not named as in abfss://container@account.dfs.core.windows.net/prefix",
            )),
            account => Ok(Self {
                container,
                account: account.flatten(),
            }),
        }
    }
}

/// `builder` with the settings in `env`.
fn configured(builder: MicrosoftAzureBuilder, env: &Env) -> MicrosoftAzureBuilder {
    let others = OTHER_NAMES
        .into_iter()
        .filter_map(|(name, key)| Some((key, env.get(name)?)));
    let named = env
        .iter()
        .filter_map(|(name, value)| Some((config_key(name)?, value)));
    // The library's own names last, so that they win.
    others
        .chain(named)
        .fold(builder, |builder, (key, value)| builder.with_config(key, value))
}

/// The setting that an `AZURE_*` variable names, if it is one.
fn config_key(name: &str) -> Option<AzureConfigKey> {
    name.starts_with("AZURE_")
        .then(|| name.to_ascii_lowercase().parse().ok())?
}

/// What is wrong, without the words of a key that was not understood.
fn without_key(e: &object_store::Error) -> String {
    let text = e.to_string();
    if text.contains("Account must be specified") {
        return "the storage account is not named: set azure.account (AZURE_STORAGE_ACCOUNT_NAME), or use \
                abfss://container@account.dfs.core.windows.net/prefix"
            .to_owned();
    }
    if text.contains("Invalid Access Key") {
        return "the account key (AZURE_STORAGE_ACCOUNT_KEY) is not base64".to_owned();
    }
    if text.contains("SAS") {
        return "the shared access signature (AZURE_STORAGE_SAS_TOKEN) is not one".to_owned();
    }
    text
}

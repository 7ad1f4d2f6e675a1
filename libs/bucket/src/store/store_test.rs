use super::*;

const KEY: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

fn opened(url: &str, env: &[(&str, &str)]) -> Result<Opened> {
    let env: Vec<_> = env
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    open(url, env.into_iter(), false, &RngHandle::from_seed(1))
}

fn error(url: &str, env: &[(&str, &str)]) -> String {
    opened(url, env).unwrap_err().to_string()
}

#[test]
fn refuses_urls_it_cannot_use_and_says_what_it_expects() {
    for (url, part) in [
        ("/var/lib/koios", "expected file:///"),
        ("ftp://b/p", "expected file:///"),
        ("file://relative", "must be absolute"),
        ("s3:///prefix", "name is missing: s3://"),
        ("gs:///prefix", "name is missing: gs://"),
        ("az:///prefix", "name is missing: az://"),
        (
            "az://container/prefix",
            "set azure.account (AZURE_STORAGE_ACCOUNT_NAME)",
        ),
        (
            "abfss://c@account/prefix",
            "the account is not named as in abfss://",
        ),
        ("s3://bucket/a/../b", ".."),
        ("gs://bucket/a//b", "a//b"),
    ] {
        let text = error(url, &[]);
        assert!(text.contains(part) && text.contains(url), "{text}");
    }
}

#[test]
fn every_kind_of_url_opens_with_its_prefix() {
    let s3 = [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("HOME", "/"),
    ];
    let gcs = [
        ("GOOGLE_BEARER_TOKEN", "t"),
        ("GOOGLE_BASE_URL", "https://private.example/"),
    ];
    let emulated = [("STORAGE_EMULATOR_HOST", "127.0.0.1:9")];
    let azure = [("AZURE_STORAGE_ACCOUNT", "account"), ("AZURE_STORAGE_KEY", KEY)];
    let key_only = [("AZURE_STORAGE_ACCOUNT_KEY", KEY)];
    let encrypted = [
        ("AWS_SERVER_SIDE_ENCRYPTION", "sse-c"),
        ("AWS_SSE_CUSTOMER_KEY_BASE64", KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    for (url, env) in [
        ("s3://bucket/a/b/", &s3[..]),
        ("s3://bucket/a/b", &encrypted),
        ("gs://bucket/a/b", &gcs),
        ("gs://bucket/a/b", &emulated),
        ("az://container/a/b", &azure),
        ("azure://container/a/b", &azure),
        ("abfss://container@account.dfs.core.windows.net/a/b", &key_only),
        (
            "abfs://container@account.blob.core.chinacloudapi.cn/a/b",
            &key_only,
        ),
    ] {
        let opened = opened(url, env).unwrap_or_else(|e| panic!("{url}: {e}"));
        assert!(opened.prefix.as_ref() == "a/b" && opened.remote, "{url}");
    }
    let azure = opened("az://c@account.dfs.core.windows.net", &key_only).unwrap();
    assert!(
        azure.store.to_string().contains("account: account, container: c"),
        "{}",
        azure.store
    );
    assert_eq!(azure.prefix, Path::default());
}

#[test]
fn secrets_do_not_come_back_in_errors() {
    for (url, env) in [
        ("s3://id:hush@bucket/p", &[][..]),
        ("s3://bucket/p?key=hush", &[]),
        ("abfss://c:hush@account.dfs.core.windows.net/p", &[]),
        ("s3://bucket/p", &[("AWS_SSE_CUSTOMER_KEY_BASE64", "hush")]),
        ("s3://bucket/p", &[("AWS_ACCESS_KEY_ID", "hush")]),
        ("s3://bucket/p", &[("AWS_SECRET_ACCESS_KEY", "hush")]),
        ("gs://bucket/p", &[("GOOGLE_SERVICE_ACCOUNT_KEY", "\"hush\"")]),
        (
            "gs://bucket/p",
            &[("GOOGLE_SERVICE_ACCOUNT_KEY", "{\"type\":\"hush\"}")],
        ),
        (
            "gs://bucket/p",
            &[(
                "GOOGLE_SERVICE_ACCOUNT_KEY",
                "{\"private_key\":\"hush\",\"private_key_id\":\"1\",\"client_email\":\"a@b\"}",
            )],
        ),
        (
            "gs://bucket/p",
            &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")],
        ),
        (
            "az://c/p",
            &[
                ("AZURE_STORAGE_ACCOUNT", "a"),
                ("AZURE_STORAGE_ACCOUNT_KEY", "!hush"),
            ],
        ),
        (
            "az://c/p",
            &[
                ("AZURE_STORAGE_ACCOUNT", "a"),
                ("AZURE_STORAGE_SAS_TOKEN", "hush"),
            ],
        ),
        (
            "az://c/p",
            &[
                ("AZURE_STORAGE_ACCOUNT", "a"),
                ("AZURE_STORAGE_ENCRYPTION_KEY", "hush"),
            ],
        ),
    ] {
        let error = opened(url, env).unwrap_err();
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains("hush"), "{text}");
        }
    }
    let text = error(
        "gs://bucket/p",
        &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")],
    );
    assert!(text.contains("/nowhere/key.json"), "{text}");
}

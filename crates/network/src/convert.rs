//! Results in the forms of older versions, read and written.
//!
//! ```text
//! 0.1.0, 0.2.0          ip4 and ip6 with their routes, no interfaces
//! 0.3.0, 0.3.1, 0.4.0   lists; every address says its version
//! 1.0.0                 the same without that
//! 1.1.0                 attributes of interfaces and routes
//! ```

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{CniError, DECODE};
use crate::ip::IpNet;
use crate::limits::RESULT_ITEMS_MAX;
use crate::result::{CniResult, Dns, IpConfig, Route};
use crate::version::CniVersion;

/// The form of 0.1.0 and 0.2.0.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Old {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<OldIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<OldIp>,
    dns: Dns,
}

#[derive(Debug, Deserialize, Serialize)]
struct OldIp {
    ip: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

/// Reads a result of any version. `assumed` is for one that does not say its version.
///
/// # Errors
///
/// It is of an unknown version, or not a result.
pub fn read(assumed: CniVersion, mut value: Value) -> Result<CniResult, CniError> {
    let undecodable = |why: String| CniError::new(DECODE, format!("the result {why}"));
    let version = match value.get("cniVersion").and_then(Value::as_str) {
        None | Some("") => assumed,
        Some(text) => text
            .parse()
            .map_err(|e| undecodable(format!("cannot be read: {e}")))?,
    };
    if !value.is_object() {
        return Err(undecodable("is not an object".to_owned()));
    }
    soften(&mut value);
    let wrong = |e: serde_json::Error| undecodable(format!("cannot be read: {e}"));
    let result = if version <= CniVersion::V0_2_0 {
        from_old(serde_json::from_value(value).map_err(wrong)?)
    } else {
        serde_json::from_value(value).map_err(wrong)?
    };
    let largest = [
        result.interfaces.len(),
        result.ips.len(),
        result.routes.len(),
    ];
    if largest.iter().any(|n| *n > RESULT_ITEMS_MAX) {
        let text = format!("has more than {RESULT_ITEMS_MAX} interfaces, addresses or routes");
        return Err(undecodable(text));
    }
    Ok(result)
}

/// What plugins write and their own reader takes: `null` for nothing, an empty text for no address, a
/// negative index for no interface.
fn soften(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                let is_nothing = match key.as_str() {
                    "gw" | "gateway" => value == "",
                    "interface" => value.as_i64().is_some_and(|n| n < 0),
                    _ => false,
                };
                !value.is_null() && !is_nothing
            });
            map.values_mut().for_each(soften);
        }
        Value::Array(list) => list.iter_mut().for_each(soften),
        _ => {}
    }
}

fn from_old(old: Old) -> CniResult {
    let mut result = CniResult {
        dns: old.dns,
        ..CniResult::default()
    };
    for ip in [old.ip4, old.ip6].into_iter().flatten() {
        result.ips.push(IpConfig {
            address: ip.ip,
            gateway: ip.gateway,
            interface: None,
        });
        result.routes.extend(ip.routes);
    }
    result
}

/// Writes a result as `version` has it. What the version has no words for is left out.
pub fn write(result: &CniResult, version: CniVersion) -> Value {
    if version <= CniVersion::V0_2_0 {
        return with_version(json!(to_old(result)), version);
    }
    let mut value = json!(result);
    if version <= CniVersion::V1_0_0 {
        for (list, keys) in [
            ("interfaces", &["mtu", "socketPath", "pciID"][..]),
            ("routes", &["mtu", "advmss", "priority", "table", "scope"]),
        ] {
            for item in items(&mut value, list) {
                keys.iter().for_each(|key| drop(item.remove(*key)));
            }
        }
    }
    if version <= CniVersion::V0_4_0 {
        for (item, ip) in items(&mut value, "ips").zip(&result.ips) {
            let of = if ip.address.addr.is_ipv4() { "4" } else { "6" };
            item.insert("version".to_owned(), of.into());
        }
    }
    with_version(value, version)
}

fn items<'a>(
    value: &'a mut Value,
    list: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> + use<'a> {
    let list = value.get_mut(list).and_then(Value::as_array_mut);
    let items = list.into_iter().flatten();
    items.filter_map(Value::as_object_mut)
}

fn with_version(mut value: Value, version: CniVersion) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.insert("cniVersion".to_owned(), version.as_str().into());
    }
    value
}

fn to_old(result: &CniResult) -> Old {
    let first = |v4: bool| {
        let ip = result
            .ips
            .iter()
            .find(|ip| ip.address.addr.is_ipv4() == v4)?;
        let routes = result.routes.iter();
        let routes = routes.filter(|r| r.dst.addr.is_ipv4() == v4);
        Some(OldIp {
            ip: ip.address,
            gateway: ip.gateway,
            routes: routes.map(|r| Route::new(r.dst, r.gw)).collect(),
        })
    };
    Old {
        ip4: first(true),
        ip6: first(false),
        dns: result.dns.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": "0a:58:0a:01:02:01", "mtu": 1400},
                {"name": "eth0", "mac": "0a:58:0a:01:02:03", "mtu": 1400, "sandbox": "/run/netns/x",
                 "socketPath": "/s", "pciID": "0000:00:01.0"},
            ],
            "ips": [
                {"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1},
                {"address": "fd00::3/64", "interface": 1},
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "10.1.2.1", "mtu": 1300, "advmss": 1200, "priority": 5,
                 "table": 100, "scope": 0},
                {"dst": "::/0"},
            ],
            "dns": {"nameservers": ["10.0.0.10"], "domain": "d", "search": ["s"], "options": ["o"]},
        })
    }

    #[test]
    fn nothing_of_the_newest_form_is_lost() {
        let read = read(CniVersion::V0_1_0, full()).unwrap();
        assert_eq!(write(&read, CniVersion::V1_1_0), full());
    }

    #[test]
    fn each_version_is_written_in_its_own_words() {
        let result = read(CniVersion::V1_1_0, full()).unwrap();
        let one = write(&result, CniVersion::V1_0_0);
        assert_eq!(
            one["interfaces"][0],
            json!({"name": "cni0", "mac": "0a:58:0a:01:02:01"})
        );
        assert_eq!(
            one["routes"][0],
            json!({"dst": "0.0.0.0/0", "gw": "10.1.2.1"})
        );
        assert_eq!(
            one["ips"][1],
            json!({"address": "fd00::3/64", "interface": 1})
        );
        let four = write(&result, CniVersion::V0_4_0);
        assert_eq!(four["cniVersion"], "0.4.0");
        assert_eq!(four["ips"][0]["version"], "4");
        assert_eq!(four["ips"][1]["version"], "6");
        assert_eq!(
            write(&result, CniVersion::V0_2_0),
            json!({
                "cniVersion": "0.2.0",
                "ip4": {"ip": "10.1.2.3/24", "gateway": "10.1.2.1",
                        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]},
                "ip6": {"ip": "fd00::3/64", "routes": [{"dst": "::/0"}]},
                "dns": {"nameservers": ["10.0.0.10"], "domain": "d", "search": ["s"],
                        "options": ["o"]},
            })
        );
    }

    #[test]
    fn what_an_older_version_can_say_survives_the_way_through_it() {
        let result = read(CniVersion::V1_1_0, full()).unwrap();
        for version in CniVersion::ALL {
            let written = write(&result, version);
            let again = read(CniVersion::V1_1_0, written.clone()).unwrap();
            assert_eq!(write(&again, version), written, "{version}");
            let addresses = |r: &CniResult| r.ips.iter().map(|ip| ip.address).collect::<Vec<_>>();
            assert_eq!(addresses(&again), addresses(&result), "{version}");
        }
    }

    #[test]
    fn what_plugins_write_for_nothing_is_nothing() {
        let value = json!({
            "cniVersion": "0.3.1", "interfaces": null, "routes": null,
            "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "", "interface": -1}],
        });
        let result = read(CniVersion::V0_3_1, value).unwrap();
        assert_eq!(result.ips[0].gateway, None);
        assert_eq!(result.ips[0].interface, None);
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for (value, word) in [
            (json!([]), "not an object"),
            (json!({"cniVersion": "7.0.0"}), "7.0.0"),
            (json!({"ips": [{"address": "10.0.0.2"}]}), "10.0.0.2"),
            (
                json!({"ips": vec![json!({"address": "10.0.0.2/8"}); RESULT_ITEMS_MAX + 1]}),
                "more than",
            ),
        ] {
            let e = read(CniVersion::V1_0_0, value).unwrap_err();
            assert!(e.to_string().contains(word), "{e}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[ -~]{0,200}") {
            if let Ok(value) = serde_json::from_str(&text) {
                drop(read(CniVersion::V1_1_0, value));
            }
        }
    }
}

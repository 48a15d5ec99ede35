//! The guard against server-side request forgery: which addresses a call to a URL that somebody
//! else chose may reach.
//!
//! It stands in two places, because neither is asked about everything:
//!
//! * [`NetGuard::check_url`] looks at a host that is an address already. A resolver is never asked
//!   for those. The `url` crate has turned `0x7f.1`, `2130706433`, `017700000001` and full-width
//!   digits into `127.0.0.1` by then.
//! * [`GuardedResolver`] filters what a name resolves to, in the very lookup whose addresses are
//!   connected to: a name that changes its mind between a check and the call (rebinding) gains
//!   nothing.
//!
//! Redirects would walk around both, so a client behind this guard follows none, and uses no proxy
//! of the environment.
//!
//! The ranges are those that the IANA registries of special-purpose addresses call not globally
//! reachable (<https://www.iana.org/assignments/iana-ipv4-special-registry>, …/iana-ipv6-…), and
//! multicast; of IPv6 only global unicast (`2000::/3`) is reachable at all. IPv6 forms that carry an
//! IPv4 address to its destination are judged by that address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Addresses of one name that are tried at most.
const ADDRESSES_MAX: usize = 16;

/// Why a call was not made. Never names what a host name resolved to: the inside of a network is
/// nobody's business outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The host is an address of a refused range.
    #[error("{address} is a {range} address: refused unless allow_networks holds it")]
    Address {
        /// The address in the URL.
        address: IpAddr,
        /// The name of its range.
        range: &'static str,
    },
    /// All that the host's name resolves to is refused.
    #[error("{host} resolves to a {range} address: refused unless allow_networks holds it")]
    Name {
        /// The host's name.
        host: String,
        /// The name of the range of the first address.
        range: &'static str,
    },
    /// The URL has no host.
    #[error("the URL has no host")]
    NoHost,
}

/// Decides which addresses may be called. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct NetGuard {
    allowed: Arc<[IpNet]>,
}

impl NetGuard {
    /// A guard that refuses every special range but those inside `allow_networks`.
    pub fn new(allow_networks: &[IpNet]) -> Self {
        Self { allowed: allow_networks.into() }
    }

    /// Whether `address` may be called.
    ///
    /// # Errors
    /// [`Refused::Address`] with the name of the range.
    pub fn check_address(&self, address: IpAddr) -> Result<(), Refused> {
        self.refused_range(address).map_or(Ok(()), |range| Err(Refused::Address { address, range }))
    }

    /// Checks a host that is an address. A name passes: what it resolves to is checked by the
    /// [resolver](Self::resolver).
    ///
    /// # Errors
    /// [`Refused::Address`], or [`Refused::NoHost`].
    pub fn check_url(&self, url: &Url) -> Result<(), Refused> {
        match url.host() {
            Some(Host::Ipv4(address)) => self.check_address(address.into()),
            Some(Host::Ipv6(address)) => self.check_address(address.into()),
            Some(Host::Domain(_)) => Ok(()),
            None => Err(Refused::NoHost),
        }
    }

    /// Looks the host's name up, and says whether everything that it resolves to is refused. A name that cannot be
    /// looked up now passes: it is judged again when it is called, by the [resolver](Self::resolver).
    ///
    /// # Errors
    /// [`Refused::Name`].
    pub async fn check_name(&self, url: &Url) -> Result<(), Refused> {
        let Some(Host::Domain(name)) = url.host() else { return Ok(()) };
        let found: Vec<SocketAddr> = match tokio::net::lookup_host((name, 0)).await {
            Ok(found) => found.collect(),
            // Other machines look it up without asking anybody (RFC 6761).
            Err(_) if is_local_name(name) => vec![(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()],
            Err(_) => return Ok(()),
        };
        self.filter(name, Box::new(found.into_iter())).map(drop)
    }

    /// The system's resolver behind this guard, for `reqwest::ClientBuilder::dns_resolver`.
    pub fn resolver(&self) -> GuardedResolver {
        self.resolver_over(Arc::new(SystemResolver))
    }

    /// Any resolver behind this guard.
    pub fn resolver_over(&self, inner: Arc<dyn Resolve>) -> GuardedResolver {
        GuardedResolver { guard: self.clone(), inner }
    }

    /// The addresses of `host` that may be called.
    fn filter(&self, host: &str, found: Addrs) -> Result<Vec<SocketAddr>, Refused> {
        let mut first_refused = None;
        let mut passed = Vec::new();
        for address in found.take(ADDRESSES_MAX) {
            match self.refused_range(address.ip()) {
                None => passed.push(address),
                Some(range) => first_refused = first_refused.or(Some(range)),
            }
        }
        match first_refused {
            Some(range) if passed.is_empty() => Err(Refused::Name { host: host.to_owned(), range }),
            _ => Ok(passed),
        }
    }

    /// The special range that `address` lies in, unless it is allowed.
    fn refused_range(&self, address: IpAddr) -> Option<&'static str> {
        if self.allows(address) {
            return None;
        }
        match address {
            IpAddr::V4(v4) => special_v4(v4),
            IpAddr::V6(v6) => match carried_v4(v6) {
                Some(v4) if self.allows(v4.into()) => None,
                Some(v4) => special_v4(v4),
                None => special_v6(v6),
            },
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|network| network.contains(&address))
    }
}

/// `localhost`, or a name below it.
fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(head: [u16; 4], bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(head[0], head[1], head[2], head[3], 0, 0, 0, 0), bits)
}

/// Special ranges of IPv4; the first that fits names the refusal.
const SPECIAL_V4: [(Ipv4Net, &str); 17] = [
    (v4(0, 0, 0, 0, 8), "unspecified"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "carrier-grade NAT"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 169, 254, 32), "metadata"),
    (v4(168, 63, 129, 16, 32), "metadata"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "reserved"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(192, 88, 99, 0, 24), "reserved"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(198, 18, 0, 0, 15), "benchmarking"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "broadcast"),
];

/// Special ranges of IPv6; the first that fits names the refusal.
const SPECIAL_V6: [(Ipv6Net, &str); 12] = [
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128), "unspecified"),
    (Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128), "loopback"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128), "metadata"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128), "metadata"),
    (v6([0x64, 0xff9b, 1, 0], 48), "local NAT64"),
    (v6([0xfc00, 0, 0, 0], 7), "unique-local"),
    (v6([0xfe80, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0], 10), "site-local"),
    (v6([0xff00, 0, 0, 0], 8), "multicast"),
    (v6([0x2001, 0xdb8, 0, 0], 32), "documentation"),
    (v6([0x3fff, 0, 0, 0], 20), "documentation"),
    (v6([0x2001, 0, 0, 0], 23), "reserved"),
];

/// All of IPv6 that is handed out for use on the Internet.
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0], 3);
/// Reserved for the future; the broadcast address is in it.
const RESERVED_V4: Ipv4Net = v4(240, 0, 0, 0, 4);

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let named = SPECIAL_V4.iter().find(|(network, _)| network.contains(&address)).map(|(_, name)| *name);
    named.or_else(|| RESERVED_V4.contains(&address).then_some("reserved"))
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let named = SPECIAL_V6.iter().find(|(network, _)| network.contains(&address)).map(|(_, name)| *name);
    named.or_else(|| (!GLOBAL_UNICAST.contains(&address)).then_some("reserved"))
}

/// The IPv4 address that a packet to `address` ends at: mapped (RFC 4291), translated (RFC 2765),
/// compatible (RFC 4291), NAT64 with the well-known prefix (RFC 6052) and 6to4 (RFC 3056). Not the
/// local NAT64 prefix (RFC 8215), where its operator decides where the IPv4 address stands, and not
/// Teredo (RFC 4380), which carries two: both are refused whole.
fn carried_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let joined = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(joined(high, low)),
        _ => None,
    }
}

/// A resolver that lets only allowed addresses through.
#[derive(Clone)]
pub struct GuardedResolver {
    guard: NetGuard,
    inner: Arc<dyn Resolve>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard.clone();
        let host = name.as_str().to_owned();
        let looking = self.inner.resolve(name);
        Box::pin(async move {
            let passed = guard.filter(&host, looking.await?)?;
            Ok(Box::new(passed.into_iter()) as Addrs)
        })
    }
}

/// `getaddrinfo` on a thread of the runtime's own bounded pool.
struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(address: &str) -> Option<&'static str> {
        NetGuard::default().refused_range(address.parse().expect(address))
    }

    #[test]
    fn special_ranges_are_refused_up_to_their_edges() {
        for (address, name) in [
            ("0.0.0.0", "unspecified"),
            ("0.255.255.255", "unspecified"),
            ("10.0.0.0", "private"),
            ("10.255.255.255", "private"),
            ("100.64.0.0", "carrier-grade NAT"),
            ("100.100.100.200", "carrier-grade NAT"),
            ("100.127.255.255", "carrier-grade NAT"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("168.63.129.16", "metadata"),
            ("169.254.0.1", "link-local"),
            ("169.254.169.254", "metadata"),
            ("172.16.0.0", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.192", "reserved"),
            ("192.0.2.1", "documentation"),
            ("192.168.255.255", "private"),
            ("198.18.0.0", "benchmarking"),
            ("198.19.255.255", "benchmarking"),
            ("198.51.100.7", "documentation"),
            ("203.0.113.7", "documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::2", "unspecified"),
            ("100::1", "reserved"),
            ("1fff::1", "reserved"),
            ("2001:2::1", "reserved"),
            ("2001:10::1", "reserved"),
            ("2001:1ff:ffff::1", "reserved"),
            ("2001:db8::1", "documentation"),
            ("3fff:fff::1", "documentation"),
            ("4000::1", "reserved"),
            ("5f00::1", "reserved"),
            ("64:ff9b:1::808:808", "local NAT64"),
            ("fc00::1", "unique-local"),
            ("fd00:ec2::254", "metadata"),
            ("fd12:3456::1", "unique-local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
        ] {
            assert_eq!(range(address), Some(name), "{address}");
        }
    }

    #[test]
    fn ipv4_inside_ipv6_is_judged_by_what_it_carries() {
        for (address, name) in [
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:10.1.2.3", "private"),
            ("::127.0.0.1", "loopback"),
            ("::ffff:0:169.254.169.254", "metadata"),
            ("64:ff9b::10.0.0.1", "private"),
            ("64:ff9b::169.254.169.254", "metadata"),
            ("2002:7f00:1::", "loopback"),
            ("2002:c0a8:101:1::5", "private"),
            // Teredo, whatever it carries; the client's address has every bit turned over.
            ("2001:0:808:808:0:0:80ff:fffe", "reserved"),
            ("2001:0:808:808:0:0:f7f7:f7f7", "reserved"),
        ] {
            assert_eq!(range(address), Some(name), "{address}");
        }
        for address in ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"] {
            assert_eq!(range(address), None, "{address}");
        }
    }

    #[test]
    fn the_internet_is_not_refused() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700:4700::1111",
            "2a00:1450:4001::1",
        ] {
            assert_eq!(range(address), None, "{address}");
        }
    }

    #[test]
    fn allowed_networks_open_exactly_themselves_in_every_form() {
        let networks: Vec<IpNet> = ["127.0.0.0/8", "10.1.0.0/16", "fd00:1::/32", "64:ff9b:1::/96"]
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect();
        let guard = NetGuard::new(&networks);
        let passes = |address: &str| guard.check_address(address.parse().expect(address)).is_ok();
        for address in
            ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::10.1.2.3", "10.1.255.1", "fd00:1::9", "64:ff9b:1::10.0.0.1"]
        {
            assert!(passes(address), "{address}");
        }
        for address in ["10.2.0.1", "::ffff:10.2.0.1", "::1", "fd00:2::1", "169.254.169.254", "64:ff9b:1:1::1"] {
            assert!(!passes(address), "{address}");
        }
    }

    #[test]
    fn hosts_that_are_addresses_are_found_however_they_are_written() {
        let guard = NetGuard::default();
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://017700000001/",
            "http://127.0.0.1./",
            "http://127\u{3002}0\u{3002}0\u{3002}1/",
            "http://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
            "http://%31%32%37.0.0.1/",
            "http://user:pass@127.0.0.1:8080/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[0:0:0:0:0:ffff:127.0.0.1]/",
            "http://0/",
        ] {
            let url = Url::parse(url).expect(url);
            assert!(matches!(guard.check_url(&url), Err(Refused::Address { .. })), "{url}");
        }
        let name = Url::parse("http://localhost/").expect("valid");
        assert_eq!(guard.check_url(&name), Ok(()), "names are the resolver's");
        assert_eq!(guard.check_url(&Url::parse("mailto:a@b").expect("valid")), Err(Refused::NoHost));
    }

    #[test]
    fn of_a_names_addresses_only_the_allowed_ones_remain() {
        let guard = NetGuard::default();
        let found = |texts: &[&str]| -> Addrs {
            let addresses: Vec<SocketAddr> =
                texts.iter().map(|text| SocketAddr::new(text.parse().expect(text), 0)).collect();
            Box::new(addresses.into_iter())
        };
        let mixed = guard.filter("mixed.test", found(&["10.0.0.1", "1.1.1.1", "::1"])).expect("one is fine");
        assert_eq!(mixed, [SocketAddr::new([1, 1, 1, 1].into(), 0)]);
        let inside = guard.filter("inside.test", found(&["10.0.0.1", "::1"])).expect_err("none is fine");
        assert_eq!(inside, Refused::Name { host: "inside.test".into(), range: "private" });
        assert!(!inside.to_string().contains("10.0.0.1"), "{inside}");
        assert_eq!(guard.filter("empty.test", found(&[])), Ok(vec![]));
    }
}

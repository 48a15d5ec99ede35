//! RabbitMQ and PostgreSQL, where the environment names them: their versions and their processes.

use std::time::Duration;

use anyhow::Context as _;
use paceline::secrets::Secret;
use serde::Serialize;
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

use super::process::Family;

/// A broker says who it is within this time.
const GREETING: Duration = Duration::from_secs(5);
/// And not with more than this.
const GREETING_BYTES_MAX: u64 = 64 * 1024;

/// Both.
#[derive(Debug, Clone)]
pub struct Services {
    pub amqp: Secret,
    pub database: String,
}

/// What they say of themselves; `unknown` where they do not.
#[derive(Debug, Serialize)]
pub struct Versions {
    pub rabbitmq: String,
    pub postgresql: String,
}

/// Their processes, or why those are not known.
pub struct Families {
    pub broker: Result<Family, String>,
    pub database: Result<Family, String>,
}

impl Services {
    /// What `AMQP_URL` and `DATABASE_URL` say.
    pub fn from_env() -> Option<Self> {
        let amqp = std::env::var("AMQP_URL").ok()?;
        Some(Self { amqp: Secret::new(amqp), database: std::env::var("DATABASE_URL").ok()? })
    }

    /// Asks both who they are.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn versions(&self) -> anyhow::Result<Versions> {
        let mut connection = PgConnection::connect(&self.database).await.context("DATABASE_URL")?;
        let (postgresql,): (String,) = sqlx::query_as("SHOW server_version").fetch_one(&mut connection).await?;
        connection.close().await?;
        let asked = tokio::time::timeout(GREETING, self.greeting()).await;
        let greeting = asked.unwrap_or_else(|_| anyhow::bail!("it says nothing")).unwrap_or_default();
        let rabbitmq = version_in(&greeting).unwrap_or_else(|| "unknown".to_owned());
        Ok(Versions { rabbitmq, postgresql })
    }

    /// The first frame of an AMQP broker, which names its version; the client library does not show it.
    async fn greeting(&self) -> anyhow::Result<Vec<u8>> {
        let url = Url::parse(self.amqp.expose())?;
        anyhow::ensure!(url.scheme() == "amqp", "TLS is not spoken here");
        let address = (url.host_str().context("no host")?, url.port().unwrap_or(5672));
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        // A frame: type, channel, size.
        let mut head = [0; 7];
        stream.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut frame = Vec::new();
        stream.take(u64::from(size).min(GREETING_BYTES_MAX)).read_to_end(&mut frame).await?;
        Ok(frame)
    }

    /// Finds their processes.
    pub fn families(&self) -> Families {
        Families {
            broker: family(self.amqp.expose(), 5672, &["beam.smp"]),
            database: family(&self.database, 5432, &["postgres", "postmaster"]),
        }
    }
}

/// The member `version` of a table: its name, `S`, four bytes of length, its text.
fn version_in(greeting: &[u8]) -> Option<String> {
    const NAME: &[u8] = b"\x07versionS";
    let at = greeting.windows(NAME.len()).position(|bytes| bytes == NAME)? + NAME.len();
    let (length, rest) = greeting.get(at..)?.split_first_chunk::<4>()?;
    let text = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn family(url: &str, usual_port: u16, names: &[&str]) -> Result<Family, String> {
    // The error of a URL may repeat its password.
    let url = Url::parse(url).map_err(|_| "its URL cannot be read".to_owned())?;
    let host = url.host_str().unwrap_or_default();
    let is_here =
        host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if !is_here {
        return Err("it may run on another machine".to_owned());
    }
    Family::listening_on(url.port().unwrap_or(usual_port), names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_a_greeting() {
        let greeting = b"\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x2c\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x063.10.8\x05";
        assert_eq!(version_in(greeting).as_deref(), Some("3.10.8"));
        assert_eq!(version_in(&greeting[..greeting.len() - 3]), None, "cut off");
    }

    #[test]
    fn what_runs_elsewhere_is_not_looked_for_here() {
        let unknown = |url: &str| family(url, 5432, &["postgres"]).expect_err("unknown");
        assert_eq!(unknown("postgres://u:p@db.example/x"), "it may run on another machine");
        assert_eq!(unknown("postgres://u:p@[::1]:1/x"), "nothing listens on port 1 of this machine");
    }
}

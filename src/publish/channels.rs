//! Two channels with publisher confirms on one connection: a reply that the broker closes a channel over (a queue
//! that may not be written to) takes no event with it.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, Connection, ExchangeKind, PublisherConfirm};
use tokio::time::{Instant, timeout, timeout_at};

use super::message::Message;
use super::verdict::Word;
use super::{Broken, CONFIRM_WITHIN};
use crate::inlet::InletError;
use crate::inlet::topology::EVENTS;
use crate::store::Publication;

/// The broker opens a channel within that time.
const OPEN_WITHIN: Duration = Duration::from_secs(15);

/// The channels of a session; closed ones are opened again.
pub(super) struct Channels<'a> {
    connection: &'a Connection,
    events: Option<Channel>,
    replies: Option<Channel>,
}

impl<'a> Channels<'a> {
    pub(super) const fn new(connection: &'a Connection) -> Self {
        Self { connection, events: None, replies: None }
    }

    /// Opens what is not open, and declares the exchange of events.
    ///
    /// # Errors
    /// [`Broken`] where the broker refuses or does not answer.
    pub(super) async fn open(&mut self) -> Result<(), Broken> {
        let opening = async {
            if !is_open(self.events.as_ref()) {
                let channel = confirming(self.connection).await?;
                let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
                channel.exchange_declare(EVENTS.into(), ExchangeKind::Topic, options, FieldTable::default()).await?;
                self.events = Some(channel);
            }
            if !is_open(self.replies.as_ref()) {
                self.replies = Some(confirming(self.connection).await?);
            }
            Ok::<(), lapin::Error>(())
        };
        match timeout(OPEN_WITHIN, opening).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(InletError::Amqp(error).into()),
            Err(_) => Err(InletError::Silent("opening a channel for completions".to_owned()).into()),
        }
    }

    /// Publishes a batch, confirms pipelined; what the broker said of each, in order.
    ///
    /// # Errors
    /// [`Broken`] where the connection is gone, or nothing at all was confirmed in time.
    pub(super) async fn publish(
        &mut self,
        batch: &[Publication],
        public_url: Option<&str>,
    ) -> Result<Vec<Word>, Broken> {
        self.open().await?;
        let until = Instant::now() + CONFIRM_WITHIN;
        let mut words: Vec<Option<Word>> = batch.iter().map(|_| None).collect();
        let open = FuturesUnordered::new();
        for (at, publication) in batch.iter().enumerate() {
            let message = match Message::new(publication, public_url) {
                Ok(message) => message,
                Err(error) => {
                    words[at] = Some(Word::Unpublishable(error.to_string()));
                    continue;
                }
            };
            let channel = if publication.reply_to.is_some() { &self.replies } else { &self.events };
            let Some(channel) = channel else { return Err(Broken::Gone) };
            match timeout_at(until, send(channel, message)).await {
                Ok(Ok(confirm)) => open.push(async move { (at, confirm.await) }),
                Ok(Err(error)) => words[at] = Some(Word::Refused(error.to_string())),
                Err(_) => return Err(Broken::Silent),
            }
        }
        let asked = open.len();
        let unanswered = collect(open, until, &mut words).await;
        if !self.connection.status().connected() {
            return Err(Broken::Gone);
        }
        if asked > 0 && unanswered == asked {
            return Err(Broken::Silent);
        }
        let late = || Word::Refused(format!("it was not confirmed within {CONFIRM_WITHIN:?}"));
        Ok(words.into_iter().map(|word| word.unwrap_or_else(late)).collect())
    }
}

fn is_open(channel: Option<&Channel>) -> bool {
    channel.is_some_and(|channel| channel.status().connected())
}

async fn confirming(connection: &Connection) -> Result<Channel, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

async fn send(channel: &Channel, message: Message) -> Result<PublisherConfirm, lapin::Error> {
    let options = BasicPublishOptions { mandatory: message.mandatory, ..Default::default() };
    let (exchange, key) = (message.exchange.into(), message.routing_key.as_str().into());
    channel.basic_publish(exchange, key, options, &message.body, message.properties).await
}

/// Waits for confirms until that time; how many did not come.
async fn collect(
    mut open: FuturesUnordered<impl Future<Output = (usize, Result<Confirmation, lapin::Error>)>>,
    until: Instant,
    words: &mut [Option<Word>],
) -> usize {
    while let Ok(Some((at, said))) = timeout_at(until, open.next()).await {
        words[at] = Some(match said {
            Ok(Confirmation::Ack(None)) => Word::Confirmed,
            Ok(Confirmation::Ack(Some(_))) => Word::Returned,
            Ok(Confirmation::Nack(_)) => Word::Refused("it said no".to_owned()),
            Ok(Confirmation::NotRequested) => Word::Refused("the channel confirms nothing".to_owned()),
            Err(error) => Word::Refused(error.to_string()),
        });
    }
    open.len()
}

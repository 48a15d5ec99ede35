//! JSON Lines: read ahead by a thread, checked line by line, sent in batches.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use paceline::job::Envelope;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Globals;
use super::arguments::JobArgs;
use super::backend::{Backend, Missing};
use super::enqueue::{fresh_id, submit};
use super::failure::{Exit, Failure, problem_text};
use super::output::Out;

/// Lines of a batch at most.
const BATCH_LINES: usize = 500;
/// Bytes of a batch at most: well below what the API takes, but for one line alone.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Longest line.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A batch that is not full is sent when no line has come for that long.
const QUIET: Duration = Duration::from_millis(100);
/// Refused lines that are told to people one by one; programs hear of all.
const TOLD_MAX: u64 = 50;

/// Where the lines come from.
pub struct Source {
    /// A path, or `-`.
    pub file: String,
    /// The first line to take.
    pub from_line: u64,
}

/// A line and its number.
struct Line {
    number: u64,
    text: Vec<u8>,
}

/// Lines as the reading thread hands them over; an error is the last.
type Lines = mpsc::Receiver<Result<Line, Failure>>;

/// What came of the lines so far.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    created: u64,
    existed: u64,
    refused: u64,
    settled_line: u64,
}

/// Enqueues every line; those that are wrong are told with their number, the rest goes on.
pub async fn run(source: Source, defaults: JobArgs, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let (lines, size) = open(&source)?;
    let backend = Backend::open(globals, Missing::Create).await?;
    let mut feed = Feed { backend, defaults, out: *out, tally: Tally::default(), bar: bar(size, out) };
    let began = Instant::now();
    let result = feed.all(lines).await;
    feed.bar.finish_and_clear();
    let summary = feed.summary(began.elapsed(), source.from_line);
    feed.backend.close().await;
    let exit = if feed.tally.refused == 0 { Exit::Done } else { Exit::Failed };
    match result {
        Ok(()) => summary.map(|()| exit),
        Err(failure) if failure.exit == Exit::BrokenPipe => Err(failure),
        Err(failure) => {
            let next = feed.tally.settled_line.max(source.from_line.saturating_sub(1)) + 1;
            let hint = format!("every line before {next} is settled: go on with --from-line {next}");
            Err(Failure { message: format!("{}; {hint}", failure.message), ..failure })
        }
    }
}

struct Feed {
    backend: Backend,
    defaults: JobArgs,
    out: Out,
    tally: Tally,
    bar: ProgressBar,
}

impl Feed {
    async fn all(&mut self, mut lines: Lines) -> Result<(), Failure> {
        let mut batch: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut bytes = 0;
        let mut last_line = 0;
        loop {
            let next = if batch.is_empty() {
                lines.recv().await
            } else {
                match tokio::time::timeout(QUIET, lines.recv()).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.send(&mut batch, last_line).await?;
                        bytes = 0;
                        continue;
                    }
                }
            };
            let Some(line) = next else { break };
            let line = match line {
                Ok(line) => line,
                Err(failure) => {
                    self.send(&mut batch, last_line).await?;
                    return Err(failure);
                }
            };
            self.bar.inc(line.text.len() as u64 + 1);
            last_line = line.number;
            let Some(json) = self.prepared(&line)? else { continue };
            if batch.len() >= BATCH_LINES || (!batch.is_empty() && bytes + json.len() > BATCH_BYTES) {
                self.send(&mut batch, line.number - 1).await?;
                bytes = 0;
            }
            bytes += json.len() + 1;
            batch.push((line.number, json));
        }
        self.send(&mut batch, last_line).await
    }

    /// The line as it is sent, its id and the defaults filled in; nothing where it is blank or
    /// wrong (and told).
    fn prepared(&mut self, line: &Line) -> Result<Option<Vec<u8>>, Failure> {
        if line.text.trim_ascii().is_empty() {
            return Ok(None);
        }
        let mut envelope = match Envelope::parse(&line.text) {
            Ok(envelope) => envelope,
            Err(invalid) => {
                let problem = paceline::api::Problem::invalid(invalid).to_json();
                self.refused(line.number, &problem)?;
                return Ok(None);
            }
        };
        envelope.id.get_or_insert_with(fresh_id);
        envelope.provider = envelope.provider.or_else(|| self.defaults.provider.clone());
        envelope.lane = envelope.lane.or_else(|| self.defaults.lane.clone());
        envelope.tenant = envelope.tenant.or_else(|| self.defaults.tenant.clone());
        serde_json::to_vec(&envelope).map(Some).map_err(|e| Failure::new(Exit::Failed, e.to_string()))
    }

    async fn send(&mut self, batch: &mut Vec<(u64, Vec<u8>)>, settled_line: u64) -> Result<(), Failure> {
        if !batch.is_empty() {
            let mut body = Vec::with_capacity(batch.iter().map(|(_, json)| json.len() + 1).sum::<usize>() + 2);
            for (_, json) in batch.iter() {
                body.push(if body.is_empty() { b'[' } else { b',' });
                body.extend_from_slice(json);
            }
            body.push(b']');
            let answer = submit(&self.backend, body).await?;
            let items = answer["items"].as_array().filter(|items| items.len() == batch.len());
            let items =
                items.ok_or_else(|| Failure::new(Exit::Failed, "the answer has not as many items as were sent"))?;
            for ((number, _), item) in batch.drain(..).zip(items) {
                self.settled(number, item)?;
            }
        }
        self.tally.settled_line = settled_line;
        Ok(())
    }

    fn settled(&mut self, number: u64, item: &Value) -> Result<(), Failure> {
        if item["error"].is_object() {
            return self.refused(number, &item["error"]);
        }
        let counter = if item["created"] == false { &mut self.tally.existed } else { &mut self.tally.created };
        *counter += 1;
        if self.out.is_json() {
            let mut item = item.clone();
            item["line"] = number.into();
            self.out.json(&item)?;
        }
        self.bar.set_message(format!("{} jobs", self.tally.created + self.tally.existed));
        Ok(())
    }

    fn refused(&mut self, number: u64, problem: &Value) -> Result<(), Failure> {
        self.tally.refused += 1;
        if self.out.is_json() {
            return self.out.json(&json!({ "line": number, "error": problem }));
        }
        let out = self.out;
        let tell = |text: String| self.bar.suspend(|| out.note(text));
        match self.tally.refused {
            n if n <= TOLD_MAX => tell(format!("line {number}: {}", problem_text(problem))),
            n if n == TOLD_MAX + 1 => tell("more lines are refused; --json tells all of them".to_owned()),
            _ => Ok(()),
        }
    }

    fn summary(&self, took: Duration, from_line: u64) -> Result<(), Failure> {
        let Tally { created, existed, refused, settled_line } = self.tally;
        if self.out.is_json() {
            let summary = json!({ "created": created, "existed": existed, "refused": refused,
                "from_line": from_line, "to_line": settled_line, "took_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX) });
            return self.out.json(&json!({ "summary": summary }));
        }
        let seconds = took.as_secs_f64().max(0.001);
        let rate = (created + existed) as f64 / seconds;
        self.out.line(format!(
            "{created} enqueued, {existed} there already, {refused} refused in {seconds:.1} s ({rate:.0} jobs/s) at {}",
            self.backend.place()
        ))
    }
}

/// The lines, read by a thread of their own (a pipe may be silent for long), and the file's size.
fn open(source: &Source) -> Result<(Lines, Option<u64>), Failure> {
    let (reader, size): (Box<dyn Read + Send>, Option<u64>) = if source.file == "-" {
        (Box::new(std::io::stdin()), None)
    } else {
        let wrong = |e: std::io::Error| Failure::usage(format!("cannot read {}: {e}", source.file));
        let file = File::open(&source.file).map_err(wrong)?;
        let size = file.metadata().map_err(wrong)?.len();
        (Box::new(file), Some(size))
    };
    let (sender, receiver) = mpsc::channel(2 * BATCH_LINES);
    let from_line = source.from_line;
    std::thread::spawn(move || read_lines(BufReader::new(reader), from_line, &sender));
    Ok((receiver, size))
}

fn read_lines(mut reader: impl BufRead, from_line: u64, sender: &mpsc::Sender<Result<Line, Failure>>) {
    for number in 1_u64.. {
        let line = match read_line(&mut reader) {
            Ok(None) => return,
            Ok(Some(_)) if number < from_line => continue,
            Ok(Some(text)) => Ok(Line { number, text }),
            Err(why) => Err(Failure::new(Exit::Failed, format!("line {number}: {why}"))),
        };
        let last = line.is_err();
        // The receiver is gone where the command has ended.
        if sender.blocking_send(line).is_err() || last {
            return;
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>, String> {
    let mut text = Vec::new();
    let bytes_max = LINE_BYTES_MAX as u64 + 1;
    let read = reader.by_ref().take(bytes_max).read_until(b'\n', &mut text).map_err(|e| e.to_string())?;
    if read == 0 {
        return Ok(None);
    }
    if text.last() == Some(&b'\n') {
        text.pop();
    } else if text.len() > LINE_BYTES_MAX {
        return Err(format!("it is longer than {LINE_BYTES_MAX} bytes"));
    }
    Ok(Some(text))
}

/// On a terminal only; measured in bytes where they are known.
fn bar(size: Option<u64>, out: &Out) -> ProgressBar {
    if !out.shows_progress() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:40} {percent:>3} %  {msg}  {elapsed}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

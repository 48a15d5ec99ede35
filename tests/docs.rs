//! What a reader meets first is true: links lead somewhere, configurations and jobs are valid, commands exist, and names
//! of tests, constants, log messages and metrics are those of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use paceline::config::Config;
use paceline::job::{Envelope, Given};

/// Every text for readers.
const PAGES: [&str; 11] = [
    "README.md",
    "CHANGELOG.md",
    "docs/api.md",
    "docs/architecture.md",
    "docs/benchmarks.md",
    "docs/configuration.md",
    "docs/dashboard.md",
    "docs/guarantees.md",
    "docs/operations.md",
    "docs/pacing.md",
    "docs/webhooks.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn pages() -> Vec<(&'static str, Page)> {
    PAGES.into_iter().map(|page| (page, Page::parse(&read(page)))).collect()
}

/// A page in parts.
struct Page {
    /// Without its blocks of code.
    prose: String,
    /// Language and text of each block.
    blocks: Vec<(String, String)>,
}

impl Page {
    fn parse(text: &str) -> Self {
        let mut page = Self { prose: String::new(), blocks: Vec::new() };
        let mut block: Option<(String, String)> = None;
        for line in text.lines() {
            match (line.strip_prefix("```"), block.as_mut()) {
                (Some(language), None) => block = Some((language.trim().to_owned(), String::new())),
                (Some(_), Some(_)) => page.blocks.extend(block.take()),
                (None, Some((_, code))) => *code += &format!("{line}\n"),
                (None, None) => page.prose += &format!("{line}\n"),
            }
        }
        assert!(block.is_none(), "a block of code is not closed");
        page
    }

    fn blocks_of<'a>(&'a self, language: &'a str) -> impl Iterator<Item = &'a str> {
        self.blocks.iter().filter(move |(of, _)| of == language).map(|(_, code)| code.as_str())
    }

    /// Text and target of every link.
    fn links(&self) -> Vec<(&str, &str)> {
        let mut links = Vec::new();
        for (at, _) in self.prose.match_indices("](") {
            let text = self.prose[..at].rsplit('[').next().unwrap_or_default();
            let target = self.prose[at + 2..].split(')').next().unwrap_or_default();
            links.push((text, target));
        }
        links
    }

    /// Everything between single backticks.
    fn inline_code(&self) -> Vec<&str> {
        self.prose.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
    }

    /// The anchors of its headings, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose.lines().filter(|line| line.starts_with('#'));
        headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect();
    let kept: String = kept;
    kept.replace(' ', "-")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `text` on its own.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word))
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for (name, page) in pages() {
        let folder = Path::new(name).parent().unwrap_or(Path::new("")).to_path_buf();
        for (_, target) in page.links() {
            if target.starts_with("https://") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { PathBuf::from(name) } else { normal(&folder.join(path)) };
            if !root().join(&file).exists() {
                wrong.push(format!("{name}: {target}: there is no {}", file.display()));
            } else if !heading.is_empty() && !Page::parse(&read(&file)).anchors().contains(heading) {
                wrong.push(format!("{name}: {target}: no heading of that name"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(out.pop()),
            other => out.push(other),
        }
    }
    out
}

/// A link such as [`some_test`](tests/some.rs) names something that is in that file.
#[test]
fn names_in_links_to_code_are_in_that_code() {
    let mut wrong = Vec::new();
    for (name, page) in pages() {
        let folder = Path::new(name).parent().unwrap_or(Path::new("")).to_path_buf();
        for (text, target) in page.links() {
            let named = text.trim_matches('`');
            let is_name = text.starts_with('`') && !named.is_empty() && named.chars().all(is_word);
            let file = root().join(normal(&folder.join(target)));
            if is_name && target.ends_with(".rs") && file.exists() && !has_word(&read(&file), named) {
                wrong.push(format!("{name}: {target} has no {named}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A value for every secret that a text names.
fn environment(text: &str) -> Vec<(String, String)> {
    let names = text.split("\"env:").skip(1).filter_map(|rest| rest.split('"').next());
    let value = |name: &str| match name {
        "PACELINE_WEBHOOK_SECRET" => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        _ => "0123456789abcdef",
    };
    names.map(|name| (name.to_owned(), value(name).to_owned())).collect()
}

fn configuration(place: &str, text: &str) -> Config {
    Config::parse(text, None, &environment(text)).unwrap_or_else(|e| panic!("{place}: {e}\n{text}"))
}

#[test]
fn every_configuration_is_valid() {
    let mut seen = 0;
    for (name, page) in pages() {
        for text in page.blocks_of("toml") {
            let config = configuration(name, text);
            seen += 1;
            assert!(!config.providers.is_empty() || name != "README.md", "README.md shows a whole configuration");
        }
    }
    assert!(seen >= 1);
    let sample = configuration("examples/paceline.toml", &read("examples/paceline.toml"));
    assert_eq!(sample.providers.len(), 2);
}

#[test]
fn the_sample_passes_the_check_of_the_command_line() {
    let sample = read("examples/paceline.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_paceline"))
        .args(["check", "--config", "examples/paceline.toml"])
        .current_dir(root())
        .env_clear()
        .envs(environment(&sample))
        .output()
        .expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// JSON that is shown: whole blocks, and bodies of curl.
fn shown_json(page: &Page) -> Vec<String> {
    let mut shown: Vec<String> = page.blocks_of("json").map(str::to_owned).collect();
    for shell in page.blocks_of("sh") {
        let bodies = shell.split(" -d '").skip(1).filter_map(|rest| rest.split('\'').next());
        shown.extend(bodies.map(str::to_owned));
    }
    shown
}

#[test]
fn every_job_is_valid() {
    let readme = Page::parse(&read("README.md"));
    let catalog = configuration("README.md", readme.blocks_of("toml").next().expect("a configuration")).catalog();
    let mut jobs = 0;
    for (name, page) in pages() {
        for text in shown_json(&page) {
            let value: serde_json::Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
            if value.get("request").is_some() {
                let envelope = Envelope::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
                let checked = envelope.check(&Given::default(), &catalog, || "fresh".to_owned());
                checked.unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
                jobs += 1;
            }
        }
    }
    assert!(jobs >= 3, "{jobs} jobs are shown");
}

/// Global options that take a value.
const WITH_VALUE: [&str; 3] = ["--config", "--url", "--token-env"];
/// Commands that have commands of their own.
const GROUPS: [&str; 8] = ["jobs", "dead", "endpoints", "deliveries", "providers", "keys", "topology", "schedules"];

/// Command, and the options that are used with it: of the words after `paceline`.
fn command_of(words: &[&str]) -> (Vec<String>, Vec<String>) {
    let (mut command, mut options, mut skip) = (Vec::<String>::new(), Vec::<String>::new(), false);
    for word in words {
        if std::mem::take(&mut skip) {
            continue;
        }
        if matches!(*word, "|" | "&" | "&&" | ";" | "\\") {
            break;
        }
        if word.starts_with("--") {
            skip = WITH_VALUE.contains(word);
            options.push(word.split('=').next().unwrap_or(word).to_owned());
        } else if command.is_empty() || (command.len() == 1 && GROUPS.contains(&command[0].as_str())) {
            command.push((*word).trim_end_matches(['`', ',', '.', ':']).to_owned());
        }
    }
    (command, options)
}

/// Lines of shell, those that end in a backslash joined with the next.
fn shell_lines(page: &Page) -> Vec<String> {
    page.blocks_of("sh")
        .flat_map(|code| code.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn every_command_that_is_shown_exists() {
    let mut used: BTreeMap<Vec<String>, BTreeSet<String>> = BTreeMap::new();
    for (_, page) in pages() {
        let lines = shell_lines(&page);
        let inline = page.inline_code().into_iter().filter(|code| code.starts_with("paceline ")).map(str::to_owned);
        for line in lines.into_iter().chain(inline) {
            let words: Vec<&str> = line.split_whitespace().collect();
            for at in words.iter().enumerate().filter(|(_, word)| **word == "paceline").map(|(at, _)| at) {
                let (command, options) = command_of(&words[at + 1..]);
                used.entry(command).or_default().extend(options);
            }
        }
    }
    assert!(used.len() >= 8, "{used:?}");
    for (command, options) in used {
        let output = Command::new(env!("CARGO_BIN_EXE_paceline")).args(&command).arg("--help").env_clear().output();
        let output = output.expect("run");
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && help.contains("Usage"), "there is no command {command:?}");
        for option in options.iter().filter(|option| *option != "--help") {
            let listed = help.split_whitespace().any(|word| word.trim_end_matches(',') == option);
            assert!(listed, "{command:?} has no {option}");
        }
    }
}

#[test]
fn every_target_of_make_and_every_action_of_the_services_exists() {
    let (makefile, services) = (read("Makefile"), read("deploy/services"));
    for (name, page) in pages() {
        let inline = page.inline_code().into_iter().map(str::to_owned);
        for line in shell_lines(&page).into_iter().chain(inline) {
            let words: Vec<&str> = line.split(|c: char| c.is_whitespace() || matches!(c, '"' | '(' | ')')).collect();
            if let ["make", target, ..] = words.as_slice() {
                assert!(makefile.contains(&format!("\n{target}: ")), "{name}: make {target}");
            }
            for pair in words.windows(2).filter(|pair| pair[0] == "deploy/services") {
                assert!(
                    services.contains(&format!("#   deploy/services {}", pair[1])),
                    "{name}: deploy/services {}",
                    pair[1]
                );
            }
        }
    }
}

/// All code, without its line breaks and the blanks after them: long texts are wrapped there.
fn code() -> String {
    fn collect(folder: &Path, out: &mut String) {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                collect(&entry, out);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                out.push_str(&std::fs::read_to_string(&entry).expect("text"));
            }
        }
    }
    let mut out = String::new();
    collect(&root().join("src"), &mut out);
    collect(&root().join("workers"), &mut out);
    out
}

/// The first column of the tables below a heading, where it is code.
fn first_column<'a>(text: &'a str, heading: &'a str) -> Vec<&'a str> {
    let below = text.split(&format!("\n{heading}\n")).nth(1).unwrap_or_else(|| panic!("no heading {heading}"));
    let section = below.split("\n## ").next().unwrap_or_default();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|rest| rest.split(" |").next());
    cells.flat_map(|cell| cell.split("`, `")).map(|cell| cell.trim_matches('`')).collect()
}

#[test]
fn what_operators_are_told_to_look_for_is_what_is_said() {
    let (page, code) = (read("docs/operations.md"), code());
    let messages = first_column(&page, "## Logs");
    assert!(messages.len() >= 10, "{messages:?}");
    for message in messages {
        assert!(code.contains(&format!("\"{message}")), "no log message: {message}");
    }
    let metrics = first_column(&page, "## Metrics");
    let metrics: Vec<&str> = metrics.into_iter().filter(|m| m.chars().all(is_word)).collect();
    assert!(metrics.len() >= 15, "{metrics:?}");
    for metric in metrics {
        let base = metric.trim_end_matches("_total");
        let last = base.trim_start_matches("paceline_").trim_start_matches("webhook_");
        let there = code.contains(&format!("\"{base}\"")) || code.contains(&format!("register(\"{last}\""));
        let wrapped = code.split("register(").any(|call| call.trim_start().starts_with(&format!("\"{last}\"")));
        assert!(there || wrapped, "no metric {metric}");
    }
}

#[test]
fn every_key_of_the_configuration_is_documented() {
    let page = read("docs/configuration.md");
    let file = read("src/config/file.rs");
    let fields =
        file.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':')).map(|(name, _)| name);
    for field in fields.filter(|name| !name.contains(' ')) {
        let field = field.trim_start_matches("r#");
        assert!(has_word(&page, field), "docs/configuration.md says nothing of {field}");
    }
}

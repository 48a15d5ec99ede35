//! Single values given by the environment: `PACELINE__API__LISTEN`,
//! `PACELINE__PROVIDER__<NAME>__TIMEOUT`, and the shorter `AMQP_URL` and `DATABASE_URL`.

use toml::{Table, Value};

use super::ConfigError;

const PREFIX: &str = "PACELINE__";

/// Puts every override into the file's table. Returns the names of the variables that were used.
pub(super) fn apply(table: &mut Table, env: &[(String, String)]) -> Result<Vec<String>, ConfigError> {
    let mut used = Vec::new();
    for (name, section) in [("AMQP_URL", "queue"), ("DATABASE_URL", "store")] {
        if let Some((_, value)) = env.iter().find(|(n, v)| n == name && !v.is_empty()) {
            set(table, name, &[section.to_owned(), "url".to_owned()], Value::String(value.clone()))?;
            used.push(name.to_owned());
        }
    }
    for (name, value) in env.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        let value = scalar(value);
        match path.split_first() {
            Some((first, rest)) if first == "provider" => set_in_provider(table, name, rest, value)?,
            _ => set(table, name, &path, value)?,
        }
        used.push(name.clone());
    }
    Ok(used)
}

fn wrong(name: &str, message: impl Into<String>) -> ConfigError {
    ConfigError::Override { name: name.to_owned(), message: message.into() }
}

/// A boolean or an integer where it looks like one, else a string.
fn scalar(text: &str) -> Value {
    text.parse::<bool>()
        .map(Value::Boolean)
        .or_else(|_| text.parse::<i64>().map(Value::Integer))
        .unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn set(table: &mut Table, name: &str, path: &[String], value: Value) -> Result<(), ConfigError> {
    match path {
        [] => Err(wrong(name, "names no setting")),
        [last] => {
            if table.get(last).is_some_and(|v| v.is_array() || v.is_table()) {
                return Err(wrong(name, "lists and tables can only be given in the file"));
            }
            table.insert(last.clone(), value);
            Ok(())
        }
        [first, rest @ ..] => {
            let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            match inner {
                Value::Table(inner) => set(inner, name, rest, value),
                _ => Err(wrong(name, format!("{first} is a single value or a list, which has no parts to set"))),
            }
        }
    }
}

fn set_in_provider(table: &mut Table, name: &str, path: &[String], value: Value) -> Result<(), ConfigError> {
    let Some((wanted, rest)) = path.split_first() else { return Err(wrong(name, "names no provider")) };
    let providers = table.get_mut("provider").and_then(Value::as_array_mut);
    let found = providers.into_iter().flatten().filter_map(Value::as_table_mut).find(|p| {
        p.get("name").and_then(Value::as_str).is_some_and(|n| n.replace('-', "_").eq_ignore_ascii_case(wanted))
    });
    match found {
        Some(provider) => set(provider, name, rest, value),
        None => Err(wrong(name, format!("there is no provider {wanted:?} in the file"))),
    }
}

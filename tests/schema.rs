//! The two schemas are one: the same tables, columns, types, defaults, indexes and views.

#[path = "common/store.rs"]
#[allow(dead_code, reason = "every test binary uses another part of it")]
mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::Fixture;

/// What `name table column type nullable` says of every column.
type Columns = BTreeSet<String>;
/// Index → unique, table, columns, condition.
type Indexes = BTreeMap<String, String>;

async fn columns(fixture: &Fixture) -> Columns {
    let sql = if fixture.is_sqlite() {
        "SELECT m.name || '.' || c.name || ' ' || CASE c.type WHEN 'INTEGER' THEN 'bigint' WHEN 'BLOB' THEN 'bytea' ELSE lower(c.type) END
            || CASE WHEN c.\"notnull\" = 1 OR c.pk > 0 THEN ' not null' ELSE '' END
         FROM sqlite_schema m JOIN pragma_table_info(m.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name NOT LIKE '_sqlx%'"
    } else {
        "SELECT table_name || '.' || column_name || ' ' || data_type || CASE is_nullable WHEN 'NO' THEN ' not null' ELSE '' END
         FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
         WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name NOT LIKE '\\_sqlx%'"
    };
    fixture.texts(sql).await.into_iter().collect()
}

/// View, place, column.
async fn views(fixture: &Fixture) -> BTreeSet<String> {
    let sql = if fixture.is_sqlite() {
        "SELECT m.name || ' ' || (c.cid + 1) || ' ' || c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c WHERE m.type = 'view'"
    } else {
        "SELECT table_name || ' ' || ordinal_position || ' ' || column_name
         FROM information_schema.columns JOIN information_schema.views USING (table_schema, table_name)
         WHERE table_schema = 'public'"
    };
    fixture.texts(sql).await.into_iter().collect()
}

async fn defaults(fixture: &Fixture) -> BTreeSet<String> {
    let sql = if fixture.is_sqlite() {
        "SELECT m.name || '.' || c.name || ' ' || c.dflt_value FROM sqlite_schema m JOIN pragma_table_info(m.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name NOT LIKE '_sqlx%' AND c.dflt_value IS NOT NULL"
    } else {
        "SELECT table_name || '.' || column_name || ' ' || column_default FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%' AND column_default IS NOT NULL"
    };
    fixture.texts(sql).await.into_iter().map(|text| text.replace("::text", "").to_lowercase()).collect()
}

/// Of both databases in the spelling of neither: no blanks, no brackets, no casts.
fn plain(condition: &str) -> String {
    let text = condition.to_lowercase().replace("::text[]", "").replace("::text", "");
    let text = text.replace("= any (array[", "in [").replace("])", "]");
    text.chars().filter(|c| !c.is_whitespace() && !"()[]".contains(*c)).collect()
}

/// `CREATE [UNIQUE] INDEX name ON table [USING btree] (columns) [WHERE condition]`
fn read_index(sql: &str) -> (String, String) {
    let sql = sql.split_whitespace().collect::<Vec<_>>().join(" ").replace("public.", "").replace("USING btree ", "");
    let (head, rest) = sql.split_once(" ON ").expect("CREATE INDEX … ON …");
    let name = head.rsplit(' ').next().expect("a name").to_owned();
    let (on, condition) = rest.split_once(" WHERE ").unwrap_or((rest, ""));
    (name, format!("{} {} where {}", head.contains("UNIQUE"), plain(on), plain(condition)))
}

async fn indexes(fixture: &Fixture) -> Indexes {
    let sql = if fixture.is_sqlite() {
        "SELECT sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
    } else {
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexname NOT LIKE '%\\_pkey'"
    };
    fixture.texts(sql).await.iter().map(|sql| read_index(sql)).collect()
}

async fn primary_keys(fixture: &Fixture) -> BTreeSet<String> {
    let sql = if fixture.is_sqlite() {
        "SELECT m.name || ' ' || c.pk || ' ' || c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name NOT LIKE '_sqlx%' AND c.pk > 0"
    } else {
        "SELECT table_name || ' ' || ordinal_position || ' ' || column_name FROM information_schema.key_column_usage
         WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'"
    };
    fixture.texts(sql).await.into_iter().collect()
}

#[tokio::test]
async fn both_schemas_are_the_same() {
    let mut seen = Vec::new();
    common::on_sqlite(false, async |fixture| {
        seen.push((
            columns(&fixture).await,
            defaults(&fixture).await,
            indexes(&fixture).await,
            primary_keys(&fixture).await,
            views(&fixture).await,
        ));
    })
    .await;
    common::on_postgres(async |fixture| {
        seen.push((
            columns(&fixture).await,
            defaults(&fixture).await,
            indexes(&fixture).await,
            primary_keys(&fixture).await,
            views(&fixture).await,
        ));
    })
    .await;
    let (postgres, sqlite) = (seen.pop().expect("two"), seen.pop().expect("two"));
    assert!(sqlite.0.len() > 60 && sqlite.2.len() > 10, "the catalogue was read: {sqlite:?}");
    for column in ["jobs.hash bytea not null", "leases.state text", "leases.epoch bigint not null"] {
        assert!(sqlite.0.contains(column), "{column}: {:?}", sqlite.0);
    }
    assert_eq!(sqlite.0, postgres.0, "columns");
    assert_eq!(sqlite.1, postgres.1, "defaults");
    assert_eq!(sqlite.2, postgres.2, "indexes");
    assert_eq!(sqlite.3, postgres.3, "primary keys");
    assert!(!sqlite.4.is_empty());
    assert_eq!(sqlite.4, postgres.4, "views");
}

/// The migrations of both have the same names, in the same order.
#[test]
fn both_have_the_same_migrations() {
    let names = |folder: &str| {
        let entries =
            std::fs::read_dir(format!("{}/migrations/{folder}", env!("CARGO_MANIFEST_DIR"))).expect("a folder");
        entries.map(|e| e.expect("an entry").file_name()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names("sqlite"), names("postgres"));
}

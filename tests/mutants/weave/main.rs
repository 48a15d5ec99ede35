//! Weaves all mutants that `cargo mutants --list --json` names into the sources, so that one build holds them all and
//! the environment chooses one: `a < b` becomes `(match crate::mutant(7) { 7 => (a) == (b), 8 => (a) > (b), _ => (a) < (b) })`.
//! What `mutant` is given names the place, by the first of its mutants.
//!
//!   weave LIST.json CRATE [UNVIABLE]     rewrites the files of CRATE in place; prints "number place name" of those woven
//!
//! UNVIABLE has the numbers of mutants to be left out, since they do not compile.

use proc_macro2::{LineColumn, Span};
use serde::Deserialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

#[derive(Deserialize)]
struct Mutant {
    file: String,
    genre: String,
    name: String,
    replacement: String,
    span: Place,
    function: Option<Function>,
    #[serde(skip)]
    number: usize,
}

#[derive(Deserialize)]
struct Function {
    function_name: String,
}

#[derive(Deserialize)]
struct Place {
    start: Point,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Hash)]
struct Point {
    line: usize,
    column: usize,
}

/// A part of the text that is written anew.
enum Node {
    Binary {
        left: Range<usize>,
        op: String,
        right: Range<usize>,
        others: Vec<(usize, String)>,
    },
    /// Between the brace of a function and its first statement.
    Body {
        values: Vec<(usize, String)>,
    },
    Guard {
        guard: Range<usize>,
        values: Vec<(usize, String)>,
    },
    Unary {
        operand: Range<usize>,
        op: char,
        number: usize,
    },
    Arm {
        pattern: Range<usize>,
        guard: Option<Range<usize>>,
        number: usize,
    },
    Field {
        name: String,
        value: Range<usize>,
        base: Range<usize>,
        number: usize,
    },
}

struct Weaver<'a> {
    text: &'a str,
    lines: Vec<usize>,
    at: HashMap<(Point, &'static str), Vec<&'a Mutant>>,
    bodies: Vec<&'a Mutant>,
    nodes: Vec<(Range<usize>, Node)>,
    /// Numbers, and the places that stand for them.
    woven: Vec<(usize, usize)>,
}

const GENRES: [&str; 5] = ["BinaryOperator", "UnaryOperator", "MatchArmGuard", "MatchArm", "StructField"];

impl<'a> Weaver<'a> {
    fn new(text: &'a str, mutants: &'a [Mutant]) -> Self {
        let mut lines = vec![0];
        lines.extend(text.match_indices('\n').map(|(n, _)| n + 1));
        let mut at: HashMap<_, Vec<_>> = HashMap::new();
        for mutant in mutants {
            if let Some(genre) = GENRES.into_iter().find(|genre| *genre == mutant.genre) {
                at.entry((mutant.span.start, genre)).or_default().push(mutant);
            }
        }
        let bodies = mutants.iter().filter(|mutant| mutant.genre == "FnValue").collect();
        Weaver { text, lines, at, bodies, nodes: Vec::new(), woven: Vec::new() }
    }

    fn offset(&self, at: LineColumn) -> usize {
        let line = self.lines[at.line - 1];
        let rest = &self.text[line..];
        line + rest.char_indices().nth(at.column).map_or(rest.len(), |(n, _)| n)
    }

    fn range(&self, span: Span) -> Range<usize> {
        self.offset(span.start())..self.offset(span.end())
    }

    fn mutants(&mut self, span: Span, genre: &'static str) -> Vec<(usize, String)> {
        let start = span.start();
        let point = Point { line: start.line, column: start.column + 1 };
        let found = self.at.remove(&(point, genre)).unwrap_or_default();
        self.place(&found);
        found.into_iter().map(|mutant| (mutant.number, mutant.replacement.clone())).collect()
    }

    fn place(&mut self, mutants: &[&Mutant]) {
        let place = mutants.first().map_or(0, |first| first.number);
        self.woven.extend(mutants.iter().map(|mutant| (mutant.number, place)));
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        // Two iterators are of two types.
        let returns = &self.text[self.range(signature.output.span())];
        if returns.contains("impl ") {
            return;
        }
        let open = self.range(block.brace_token.span.open());
        let range = self.range(block.span());
        let name = signature.ident.to_string();
        let (here, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.bodies).into_iter().partition(|mutant| {
            let at = self.offset(LineColumn { line: mutant.span.start.line, column: mutant.span.start.column - 1 });
            let called = mutant.function.as_ref().and_then(|function| function.function_name.rsplit("::").next());
            range.contains(&at) && called == Some(name.as_str())
        });
        self.bodies = others;
        if here.is_empty() {
            return;
        }
        self.place(&here);
        let values = here.into_iter().map(|mutant| (mutant.number, mutant.replacement.clone())).collect();
        self.nodes.push((open.end..open.end, Node::Body { values }));
    }

    /// The text of a range with everything inside it woven.
    fn render(&self, range: Range<usize>, but: Option<usize>) -> String {
        let inside = |n: &usize| {
            let node = &self.nodes[*n].0;
            Some(*n) != but && node.start >= range.start && node.end <= range.end
        };
        let mut nodes: Vec<usize> = (0..self.nodes.len()).filter(inside).collect();
        // Outer ones first.
        nodes.sort_by_key(|&n| (self.nodes[n].0.start, Reverse(self.nodes[n].0.end), Reverse(n)));
        let (mut out, mut done) = (String::new(), range.start);
        for n in nodes {
            let at = self.nodes[n].0.clone();
            if at.start < done {
                continue;
            }
            out += &self.text[done..at.start];
            out += &self.node(n);
            done = at.end;
        }
        out + &self.text[done..range.end]
    }

    fn node(&self, n: usize) -> String {
        let part = |range: &Range<usize>| self.render(range.clone(), Some(n));
        let choose = |others: Vec<(usize, String)>, usual: String| {
            let place = others[0].0;
            let arms: String = others.into_iter().map(|(number, text)| format!("{number}u32 => {text}, ")).collect();
            format!("(match crate::mutant({place}) {{ {arms}_ => {usual} }})")
        };
        match &self.nodes[n].1 {
            Node::Binary { left, op, right, others } => {
                let (left, right) = (part(left), part(right));
                let with = |op: &str| format!("({left}) {op} ({right})");
                choose(others.iter().map(|(number, op)| (*number, with(op))).collect(), with(op))
            }
            Node::Body { values } => {
                let arms: String = values.iter().map(|(n, value)| format!("{n}u32 => return {value}, ")).collect();
                format!(" match crate::mutant({}) {{ {arms}_ => {{}} }} ", values[0].0)
            }
            Node::Guard { guard, values } => choose(values.clone(), part(guard)),
            Node::Unary { operand, op, number } => {
                let operand = part(operand);
                choose(vec![(*number, operand.clone())], format!("{op}{operand}"))
            }
            Node::Arm { pattern, guard, number } => {
                let pattern = part(pattern);
                let guard = guard.as_ref().map_or(String::new(), |guard| format!(" && ({})", part(guard)));
                format!("{pattern} if crate::mutant({number}) != {number}u32{guard}")
            }
            Node::Field { name, value, base, number } => {
                let (value, base) = (part(value), part(base));
                format!("{name}: {}", choose(vec![(*number, format!("({base}).{name}"))], value))
            }
        }
    }
}

/// `if let … && …` cannot be put into brackets.
fn has_let(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        syn::Expr::Paren(paren) => has_let(&paren.expr),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Weaver<'_> {
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}

    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}

    // A constant cannot choose.
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if item.sig.constness.is_some() {
            return;
        }
        visit::visit_item_fn(self, item);
        self.function(&item.sig, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if item.sig.constness.is_some() {
            return;
        }
        visit::visit_impl_item_fn(self, item);
        self.function(&item.sig, &item.block);
    }

    fn visit_expr_binary(&mut self, expr: &'ast syn::ExprBinary) {
        visit::visit_expr_binary(self, expr);
        if has_let(&expr.left) || has_let(&expr.right) {
            return;
        }
        let others = self.mutants(expr.op.span(), "BinaryOperator");
        if !others.is_empty() {
            let op = self.text[self.range(expr.op.span())].to_owned();
            let (left, right) = (self.range(expr.left.span()), self.range(expr.right.span()));
            self.nodes.push((left.start..right.end, Node::Binary { left, op, right, others }));
        }
    }

    fn visit_expr_unary(&mut self, expr: &'ast syn::ExprUnary) {
        visit::visit_expr_unary(self, expr);
        if let Some((number, _)) = self.mutants(expr.op.span(), "UnaryOperator").pop() {
            let op = if matches!(expr.op, syn::UnOp::Not(_)) { '!' } else { '-' };
            let operand = self.range(expr.expr.span());
            self.nodes.push((self.range(expr.span()), Node::Unary { operand, op, number }));
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        visit::visit_arm(self, arm);
        let guard = arm.guard.as_ref().map(|(_, guard)| guard);
        if guard.is_some_and(|guard| has_let(guard)) {
            return;
        }
        if let Some((number, _)) = self.mutants(arm.span(), "MatchArm").pop() {
            let pattern = self.range(arm.pat.span());
            let guard = guard.map(|guard| self.range(guard.span()));
            let end = guard.as_ref().map_or(pattern.end, |guard| guard.end);
            self.nodes.push((pattern.start..end, Node::Arm { pattern, guard, number }));
        }
        if let Some(guard) = arm.guard.as_ref().map(|(_, guard)| guard) {
            let values = self.mutants(guard.span(), "MatchArmGuard");
            if !values.is_empty() {
                let guard = self.range(guard.span());
                self.nodes.push((guard.clone(), Node::Guard { guard, values }));
            }
        }
    }

    fn visit_expr_struct(&mut self, expr: &'ast syn::ExprStruct) {
        visit::visit_expr_struct(self, expr);
        let Some(base) = &expr.rest else { return };
        for field in &expr.fields {
            if let (Some((number, _)), syn::Member::Named(name)) =
                (self.mutants(field.span(), "StructField").pop(), &field.member)
            {
                let (value, base) = (self.range(field.expr.span()), self.range(base.span()));
                let node = Node::Field { name: name.to_string(), value, base, number };
                self.nodes.push((self.range(field.span()), node));
            }
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut mutants: Vec<Mutant> = serde_json::from_str(&read(&args[1])).expect("a list of mutants");
    let unviable: HashSet<usize> = args
        .get(3)
        .map_or(String::new(), |path| read(path))
        .lines()
        .map(|line| line.parse().expect("a number"))
        .collect();
    let mut files: BTreeMap<String, Vec<Mutant>> = BTreeMap::new();
    for (n, mutant) in mutants.iter_mut().enumerate() {
        mutant.number = n + 1;
    }
    for mutant in mutants {
        files.entry(mutant.file.clone()).or_default().push(mutant);
    }
    for (file, mutants) in files {
        let path = format!("{}/{file}", args[2]);
        let text = read(&path);
        let parsed = syn::parse_file(&text).expect("Rust");
        let left: Vec<Mutant> = mutants.into_iter().filter(|mutant| !unviable.contains(&mutant.number)).collect();
        let mut weaver = Weaver::new(&text, &left);
        weaver.visit_file(&parsed);
        let woven = weaver.render(0..text.len(), None);
        let names: HashMap<usize, &str> = left.iter().map(|mutant| (mutant.number, mutant.name.as_str())).collect();
        for (number, place) in &weaver.woven {
            println!("{number} {place} {}", names[number]);
        }
        std::fs::write(&path, woven).expect("writable");
    }
}

//! The types that configuration is deserialised into, read from their source.

use std::collections::BTreeMap;

use syn::{
    Attribute, Expr, ExprLit, Fields, File, GenericArgument, ImplItem, Item, ItemEnum, ItemStruct,
    Lit, Member, Meta, PathArguments, Stmt, Type,
};

/// What a doc comment says of a key, its list items apart.
#[derive(Clone, Default)]
pub struct Doc {
    /// The text, paragraphs joined.
    pub text: String,
    /// `- Unit:`.
    pub unit: Option<String>,
    /// `- Range:`.
    pub range: Option<String>,
    /// `- Source:`.
    pub source: Option<String>,
}

/// The type of a key, as a reader of recipes knows it.
pub enum Kind {
    Whole,
    Number,
    Switch,
    Text,
    Numbers(usize),
    /// A table from names to numbers.
    Weights,
    /// A table from names to texts.
    Names,
    List(Box<Kind>),
    /// Of the schema, by name.
    Named(String),
}

/// What stands for a key that is left out.
pub enum Absent {
    /// The key must be there.
    Required,
    /// Nothing: what that means is the description's business.
    Nothing,
    /// This value, as TOML.
    Value(String),
    /// The table's own defaults.
    Table,
}

/// A key of a table.
pub struct Key {
    pub name: String,
    pub kind: Kind,
    pub absent: Absent,
    pub doc: Doc,
}

/// One of the values of a choice.
#[derive(Clone)]
pub struct Choice {
    pub name: String,
    /// Whether it takes a number: `{ name = 1 }`.
    pub takes_number: bool,
    pub doc: Doc,
}

/// An old name of a key: old, new, since.
pub type OldName = [String; 3];

/// Every type of the source that is deserialised, with what its file says of defaults.
#[derive(Default)]
pub struct Schema {
    structs: BTreeMap<String, (ItemStruct, usize)>,
    enums: BTreeMap<String, ItemEnum>,
    /// What types with named constants are for, and those constants by their number: tasks, which rooms declare for themselves.
    named: BTreeMap<String, (Doc, BTreeMap<u64, Choice>)>,
    /// Types that several files define: a key of one cannot be told.
    ambiguous: Vec<String>,
    /// The elements of constant lists, with their doc comments.
    lists: BTreeMap<String, (Vec<Expr>, String)>,
    /// Bodies of functions without arguments and fields of `Default`, one table a file.
    defaults: Vec<Defaults>,
}

#[derive(Default)]
struct Defaults {
    functions: BTreeMap<String, Expr>,
    fields: BTreeMap<(String, String), Expr>,
}

impl Schema {
    /// Takes in what a file defines.
    ///
    /// # Errors
    /// When it is no Rust.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        // Most files have nothing to say here, and parsing is what this costs.
        if !["Deserialize", "_PRESETS: &[", "RENAMED_", "Task {"]
            .iter()
            .any(|mark| text.contains(mark))
        {
            return Ok(());
        }
        let file: File = syn::parse_file(text).map_err(|problem| problem.to_string())?;
        let place = self.defaults.len();
        let mut defaults = Defaults::default();
        for item in file.items {
            match item {
                Item::Struct(item) if is_deserialised(&item.attrs) => {
                    let name = item.ident.to_string();
                    if self.structs.insert(name.clone(), (item, place)).is_some() {
                        self.ambiguous.push(name);
                    }
                }
                Item::Enum(item) if is_deserialised(&item.attrs) => {
                    let name = item.ident.to_string();
                    if self.enums.insert(name.clone(), item).is_some() {
                        self.ambiguous.push(name);
                    }
                }
                Item::Struct(item) => {
                    let named = self.named.entry(item.ident.to_string()).or_default();
                    named.0 = doc(&item.attrs);
                }
                Item::Const(item) => {
                    self.add_named(&item.expr, &item.attrs);
                    if let Expr::Reference(list) = &*item.expr
                        && let Expr::Array(list) = &*list.expr
                    {
                        let elements = list.elems.iter().cloned().collect();
                        let doc = doc(&item.attrs).text;
                        self.lists.insert(item.ident.to_string(), (elements, doc));
                    }
                }
                Item::Fn(item) if item.sig.inputs.is_empty() => {
                    if let [Stmt::Expr(body, None)] = &item.block.stmts[..] {
                        let name = item.sig.ident.to_string();
                        defaults.functions.insert(name, body.clone());
                    }
                }
                Item::Impl(item) => {
                    for inner in &item.items {
                        if let ImplItem::Const(inner) = inner {
                            self.add_named(&inner.expr, &inner.attrs);
                        }
                    }
                    let of_default = item
                        .trait_
                        .as_ref()
                        .is_some_and(|(_, path, _)| path.is_ident("Default"));
                    let (true, Type::Path(of)) = (of_default, &*item.self_ty) else {
                        continue;
                    };
                    let Some(of) = of.path.get_ident().map(ToString::to_string) else {
                        continue;
                    };
                    for inner in &item.items {
                        if let ImplItem::Fn(function) = inner
                            && let [Stmt::Expr(Expr::Struct(value), None)] =
                                &function.block.stmts[..]
                        {
                            for field in &value.fields {
                                if let syn::Member::Named(name) = &field.member {
                                    let key = (of.clone(), name.to_string());
                                    defaults.fields.insert(key, field.expr.clone());
                                }
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        self.defaults.push(defaults);
        Ok(())
    }

    /// Whether a type is a table rather than a choice.
    pub fn is_table(&self, name: &str) -> bool {
        self.structs.contains_key(name)
    }

    /// The keys of a table, and what its own doc comment says.
    ///
    /// # Errors
    /// When there is no such table, or a key's type or default is of no kind that is known here.
    pub fn table(&self, name: &str) -> Result<(Doc, Vec<Key>), String> {
        self.only(name)?;
        let (item, place) = self
            .structs
            .get(name)
            .ok_or_else(|| format!("no struct {name} is deserialised in src"))?;
        let defaults = &self.defaults[*place];
        let has_default = serde(&item.attrs).contains_key("default");
        let mut keys = Vec::new();
        for field in &item.fields {
            let Some(ident) = &field.ident else {
                return Err(format!("{name} has fields without names"));
            };
            let of = format!("{name}.{ident}");
            let said = serde(&field.attrs);
            let (kind, is_optional) = kind(&field.ty).ok_or_else(|| format!("{of}: its type"))?;
            let of_container = has_default
                .then(|| defaults.fields.get(&(name.to_owned(), ident.to_string())))
                .flatten();
            let absent = match (said.get("default"), of_container) {
                (_, Some(value)) => Absent::Value(self.value(value, &of)?),
                (None, None) if is_optional => Absent::Nothing,
                (None, None) => Absent::Required,
                (Some(_), None) if is_optional => Absent::Nothing,
                (Some(Some(function)), None) => {
                    let body = defaults.functions.get(function);
                    let body = body.ok_or_else(|| format!("{of}: no function {function}"))?;
                    Absent::Value(self.value(body, &of)?)
                }
                (Some(None), None) => self.default_of(&kind, &of)?,
            };
            keys.push(Key {
                name: said
                    .get("rename")
                    .cloned()
                    .flatten()
                    .unwrap_or_else(|| ident.to_string()),
                kind,
                absent,
                doc: doc(&field.attrs),
            });
        }
        Ok((doc(&item.attrs), keys))
    }

    /// Takes in a constant such as `Task { number: 0, name: "short_captions", … }`.
    fn add_named(&mut self, value: &Expr, attrs: &[Attribute]) {
        let Expr::Struct(value) = value else {
            return;
        };
        let field = |wanted: &str| {
            let mut fields = value.fields.iter();
            let found = fields
                .find(|field| matches!(&field.member, Member::Named(member) if member == wanted));
            found.map(|field| &field.expr)
        };
        let number = match field("number") {
            Some(Expr::Lit(ExprLit {
                lit: Lit::Int(number),
                ..
            })) => number.base10_parse().ok(),
            _ => None,
        };
        let of = value.path.get_ident().map(ToString::to_string);
        if let (Some(of), Some(number), Some(name)) = (of, number, field("name").and_then(text)) {
            let choice = Choice {
                name,
                takes_number: false,
                doc: doc(attrs),
            };
            self.named.entry(of).or_default().1.insert(number, choice);
        }
    }

    /// The values of a choice, and what its own doc comment says.
    ///
    /// # Errors
    /// When there is no such choice, or one of its values is a table of its own.
    pub fn choices(&self, name: &str) -> Result<(Doc, Vec<Choice>), String> {
        self.only(name)?;
        if let Some((doc, choices)) = self.named.get(name)
            && !choices.is_empty()
        {
            return Ok((doc.clone(), choices.values().cloned().collect()));
        }
        let item = self
            .enums
            .get(name)
            .ok_or_else(|| format!("no struct or enum {name} is deserialised in src"))?;
        let choice = |variant: &syn::Variant| {
            let takes_number = match &variant.fields {
                Fields::Unit => false,
                Fields::Unnamed(fields) if fields.unnamed.len() == 1 => true,
                _ => return Err(format!("{name}::{}: its fields", variant.ident)),
            };
            Ok(Choice {
                name: written(item, variant),
                takes_number,
                doc: doc(&variant.attrs),
            })
        };
        let choices = item.variants.iter().map(choice).collect::<Result<_, _>>()?;
        Ok((doc(&item.attrs), choices))
    }

    /// The texts of a constant list, and its doc comment.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn texts(&self, constant: &str) -> Result<(Vec<String>, &str), String> {
        let (elements, doc) = self.list(constant)?;
        Ok((elements.iter().filter_map(text).collect(), doc))
    }

    /// The rows of a constant list of calls with three texts each.
    ///
    /// # Errors
    /// When there is none of that name, or it has other rows.
    pub fn old_names(&self, constant: &str) -> Result<Vec<OldName>, String> {
        let row = |element: &Expr| match element {
            Expr::Call(call) => {
                let texts: Vec<String> = call.args.iter().filter_map(text).collect();
                texts.try_into().ok()
            }
            _ => None,
        };
        let rows: Option<Vec<OldName>> = self.list(constant)?.0.iter().map(row).collect();
        rows.ok_or_else(|| format!("{constant}: rows of three texts were expected"))
    }

    fn list(&self, constant: &str) -> Result<(&[Expr], &str), String> {
        let found = self.lists.get(constant);
        let (elements, doc) = found.ok_or_else(|| format!("no list {constant} in src"))?;
        Ok((elements, doc))
    }

    /// Refuses names that several files define: which of them a key has cannot be told.
    fn only(&self, name: &str) -> Result<(), String> {
        if self.ambiguous.iter().any(|other| other == name) {
            return Err(format!("several types {name} are deserialised in src"));
        }
        Ok(())
    }

    /// The default of a type.
    fn default_of(&self, kind: &Kind, of: &str) -> Result<Absent, String> {
        Ok(match kind {
            Kind::Whole | Kind::Number => Absent::Value("0".to_owned()),
            Kind::Switch => Absent::Value("false".to_owned()),
            Kind::Text => Absent::Value("\"\"".to_owned()),
            Kind::List(_) => Absent::Value("[]".to_owned()),
            Kind::Named(name) if self.is_table(name) => Absent::Table,
            Kind::Named(name) => {
                let item = self.enums.get(name);
                let variant = item.and_then(|item| {
                    let mut variants = item.variants.iter();
                    let is_default = |attribute: &Attribute| attribute.path().is_ident("default");
                    let variant = variants.find(|v| v.attrs.iter().any(is_default))?;
                    Some(format!("\"{}\"", written(item, variant)))
                });
                Absent::Value(variant.ok_or_else(|| format!("{of}: {name} has no default"))?)
            }
            Kind::Weights | Kind::Names => Absent::Value("{}".to_owned()),
            Kind::Numbers(_) => return Err(format!("{of}: its default")),
        })
    }

    /// An expression as TOML: numbers, switches, lists of them, values of choices.
    fn value(&self, value: &Expr, of: &str) -> Result<String, String> {
        let unknown = || format!("{of}: a default that is no number, list or choice");
        match value {
            Expr::Lit(ExprLit { lit, .. }) => match lit {
                Lit::Int(number) => Ok(number.base10_digits().to_owned()),
                Lit::Float(number) => Ok(number.base10_digits().to_owned()),
                Lit::Bool(switch) => Ok(switch.value.to_string()),
                _ => Err(unknown()),
            },
            Expr::Unary(negative) if matches!(negative.op, syn::UnOp::Neg(_)) => {
                Ok(format!("-{}", self.value(&negative.expr, of)?))
            }
            Expr::Array(list) => self.values(list.elems.iter(), of),
            // vec![…]
            Expr::Macro(list) if list.mac.path.is_ident("vec") => {
                let parse = syn::punctuated::Punctuated::<Expr, syn::Token![,]>::parse_terminated;
                let elements = list.mac.parse_body_with(parse).map_err(|_| unknown())?;
                self.values(elements.iter(), of)
            }
            Expr::Path(path) => {
                let parts: Vec<String> = path
                    .path
                    .segments
                    .iter()
                    .map(|part| part.ident.to_string())
                    .collect();
                let [name, variant] = &parts[..] else {
                    return Err(unknown());
                };
                let item = self.enums.get(name).ok_or_else(unknown)?;
                let mut variants = item.variants.iter();
                let variant = variants.find(|known| known.ident == variant);
                let variant = variant.ok_or_else(unknown)?;
                Ok(format!("\"{}\"", written(item, variant)))
            }
            _ => Err(unknown()),
        }
    }

    fn values<'a>(&self, list: impl Iterator<Item = &'a Expr>, of: &str) -> Result<String, String> {
        let list: Vec<String> = list.map(|e| self.value(e, of)).collect::<Result<_, _>>()?;
        Ok(format!("[{}]", list.join(", ")))
    }
}

fn is_deserialised(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return false;
        };
        let mut words = list.tokens.clone().into_iter();
        list.path.is_ident("derive") && words.any(|word| word.to_string() == "Deserialize")
    })
}

/// What `#[serde(…)]` says: names, some with a text.
fn serde(attributes: &[Attribute]) -> BTreeMap<String, Option<String>> {
    let mut said = BTreeMap::new();
    for attribute in attributes {
        if !attribute.path().is_ident("serde") {
            continue;
        }
        // What it does not understand the derive has refused already.
        let _ = attribute.parse_nested_meta(|meta| {
            let name = meta.path.get_ident().map(ToString::to_string);
            let value = match meta.value() {
                Ok(value) => Some(value.parse::<syn::LitStr>()?.value()),
                Err(_) => None,
            };
            said.extend(name.map(|name| (name, value)));
            Ok(())
        });
    }
    said
}

/// The name of a variant in a recipe: its own, or in snake case as the enums of recipes have it.
fn written(item: &ItemEnum, variant: &syn::Variant) -> String {
    if let Some(Some(name)) = serde(&variant.attrs).remove("rename") {
        return name;
    }
    let name = variant.ident.to_string();
    match serde(&item.attrs).remove("rename_all").flatten().as_deref() {
        Some("snake_case") => {
            let mut snake = String::new();
            for (index, letter) in name.char_indices() {
                if letter.is_uppercase() && index > 0 {
                    snake.push('_');
                }
                snake.extend(letter.to_lowercase());
            }
            snake
        }
        Some("lowercase") => name.to_lowercase(),
        _ => name,
    }
}

/// The kind of a type, and whether it is an `Option`.
fn kind(of: &Type) -> Option<(Kind, bool)> {
    match of {
        Type::Array(array) => {
            let Expr::Lit(ExprLit {
                lit: Lit::Int(length),
                ..
            }) = &array.len
            else {
                return None;
            };
            let length = length.base10_parse().ok()?;
            let (Kind::Number, false) = kind(&array.elem)? else {
                return None;
            };
            Some((Kind::Numbers(length), false))
        }
        Type::Path(path) => {
            let last = path.path.segments.last()?;
            let inner = match &last.arguments {
                PathArguments::AngleBracketed(arguments) => match arguments.args.last() {
                    Some(GenericArgument::Type(inner)) => kind(inner),
                    _ => return None,
                },
                _ => None,
            };
            let plain = match (last.ident.to_string().as_str(), inner) {
                ("Option", Some((inner, _))) => return Some((inner, true)),
                ("Vec", Some((inner, _))) => Kind::List(Box::new(inner)),
                ("BTreeMap", Some((Kind::Number, _))) => Kind::Weights,
                ("BTreeMap", Some((Kind::Text, _))) => Kind::Names,
                ("u32" | "u64" | "usize" | "i64", None) => Kind::Whole,
                ("f32" | "f64", None) => Kind::Number,
                ("bool", None) => Kind::Switch,
                ("String" | "PathBuf", None) => Kind::Text,
                (name, None) => Kind::Named(name.to_owned()),
                _ => return None,
            };
            Some((plain, false))
        }
        _ => None,
    }
}

fn text(value: &Expr) -> Option<String> {
    match value {
        Expr::Lit(ExprLit {
            lit: Lit::Str(text),
            ..
        }) => Some(text.value()),
        _ => None,
    }
}

/// The doc comment of an item.
fn doc(attributes: &[Attribute]) -> Doc {
    let mut lines = Vec::new();
    for attribute in attributes {
        if let Meta::NameValue(pair) = &attribute.meta
            && pair.path.is_ident("doc")
            && let Some(line) = text(&pair.value)
        {
            lines.push(line.trim().to_owned());
        }
    }
    let mut doc = Doc::default();
    // Where lines without a label of their own go.
    let mut label = None;
    for line in lines.iter().filter(|line| !line.is_empty()) {
        let labels = ["- Unit: ", "- Range: ", "- Source: "];
        let begun = labels
            .iter()
            .position(|label| line.starts_with(label))
            .map(|at| (at, &line[labels[at].len()..]));
        let rest = match begun {
            Some((at, rest)) => {
                label = Some(at);
                rest
            }
            None => line.as_str(),
        };
        let into = match label {
            None => &mut doc.text,
            Some(0) => doc.unit.get_or_insert_default(),
            Some(1) => doc.range.get_or_insert_default(),
            Some(_) => doc.source.get_or_insert_default(),
        };
        if !into.is_empty() {
            into.push(' ');
        }
        into.push_str(rest);
    }
    doc
}

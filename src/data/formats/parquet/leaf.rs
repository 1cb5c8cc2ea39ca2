//! The columns of a nested schema, and the way back from their values to the objects and lists they were taken from.
//!
//! Source: Dremel (Melnik et al. 2010), §4.1–4.2: a value's repetition level says at which of the lists around it a new item
//! begins, its definition level how many of the optional and repeated nodes on its path are there.

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::ByteArray;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

/// One row of one column: its values that are not null, and the levels that say where they belong.
#[derive(Default)]
pub(super) struct Field {
    pub values: Vec<ByteArray>,
    pub definition: Vec<i16>,
    pub repetition: Vec<i16>,
}

/// One column: a path of the schema that ends in a value.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// Its number in the file.
    pub column: usize,
    /// Whether its values are strings of bytes.
    pub is_bytes: bool,
    /// Whether the schema calls them text.
    pub is_text: bool,
    path: Vec<SchemaNode>,
}

/// A node on the way to a value.
#[derive(Clone, Debug)]
struct SchemaNode {
    /// Its name in an object; none for what only makes a list of what is below it.
    key: Option<String>,
    repetition: Repetition,
}

impl Leaf {
    /// The name of the column as a user sees it.
    pub fn root(&self) -> &str {
        self.path[0].key.as_deref().unwrap_or_default()
    }

    /// The last name on the path.
    pub fn last_key(&self) -> &str {
        let keys = self.path.iter().rev();
        keys.filter_map(|step| step.key.as_deref())
            .next()
            .unwrap_or_default()
    }

    /// Whether a row can hold several of its values.
    pub fn is_list(&self) -> bool {
        let mut steps = self.path.iter();
        steps.any(|step| step.repetition == Repetition::REPEATED)
    }

    /// Nodes on the path.
    pub fn depth(&self) -> usize {
        self.path.len()
    }

    /// Writes the values of one row into the object.
    pub fn write(&self, field: &Field, object: &mut Map<String, Value>) -> Result<(), String> {
        let lists = self.path.iter();
        let lists = lists.filter(|step| step.repetition == Repetition::REPEATED);
        let mut items = vec![0usize; lists.count()];
        let deepest = self.path.iter();
        let deepest = deepest
            .filter(|step| step.repetition != Repetition::REQUIRED)
            .count() as i16;
        let mut values = field.values.iter();
        // Levels are walked and not values: nulls and empty lists have a level and no value, and keep their place in the object.
        // A column that is always there has no levels at all.
        let levels = field.definition.len().max(field.values.len());
        for index in 0..levels {
            if let Some(level) = field.repetition.get(index).filter(|level| **level > 0) {
                let level = (*level as usize).min(items.len());
                if level > 0 {
                    items[level - 1] += 1;
                    items[level..].fill(0);
                }
            }
            let definition = field.definition.get(index).copied().unwrap_or(deepest);
            let value = if definition >= deepest {
                let bytes = values.next().map(|value| value.data()).unwrap_or_default();
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| format!("its {} is not UTF-8", self.root()))?;
                Value::String(text.to_owned())
            } else {
                Value::Null
            };
            self.place(definition, &items, value, object);
        }
        Ok(())
    }

    /// Puts one value at its place; what is not there on its path stays null or becomes an empty list.
    fn place(
        &self,
        definition: i16,
        items: &[usize],
        value: Value,
        object: &mut Map<String, Value>,
    ) {
        let root = self.root().to_owned();
        let mut here = object.entry(root).or_insert(Value::Null);
        let mut defined = 0;
        let mut items = items.iter();
        // Down the path, as far as the level says that something is there: an optional node counts one, and so does a list that
        // has an item.
        for (depth, step) in self.path.iter().enumerate() {
            if let Some(key) = step.key.as_ref().filter(|_| depth > 0) {
                if !here.is_object() {
                    *here = Value::Object(Map::new());
                }
                here = here
                    .as_object_mut()
                    .expect("made one above")
                    .entry(key.clone())
                    .or_insert(Value::Null);
            }
            if step.repetition == Repetition::REQUIRED {
                continue;
            }
            defined += 1;
            if step.repetition == Repetition::REPEATED && !here.is_array() {
                *here = Value::Array(Vec::new());
            }
            if definition < defined {
                return;
            }
            if step.repetition == Repetition::REPEATED {
                let item = items.next().copied().unwrap_or_default();
                let list = here.as_array_mut().expect("made one above");
                // Every item but the last has been written before: the levels count them one by one.
                let item = item.min(list.len());
                if item == list.len() {
                    list.push(Value::Null);
                }
                here = &mut list[item];
            }
        }
        *here = value;
    }
}

/// Every column below a schema's root, in the file's order.
pub(super) fn leaves(root: &Type) -> Vec<Leaf> {
    let mut found = Vec::new();
    for field in root.get_fields() {
        walk(field, Vec::new(), Around::Struct, &mut found);
    }
    found
}

/// What a node stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Around {
    Struct,
    /// A group that is called a list: what is in it repeats and has no name of its own.
    List,
    /// What repeats in such a group: its one child has no name of its own either.
    Items,
}

fn walk(node: &Type, mut steps: Vec<SchemaNode>, around: Around, found: &mut Vec<Leaf>) {
    let info = node.get_basic_info();
    let repetition = if info.has_repetition() {
        info.repetition()
    } else {
        Repetition::REQUIRED
    };
    steps.push(SchemaNode {
        key: (around == Around::Struct).then(|| info.name().to_owned()),
        repetition,
    });
    if node.is_primitive() {
        let is_text = info.converted_type() == ConvertedType::UTF8
            || matches!(info.logical_type_ref(), Some(LogicalType::String));
        found.push(Leaf {
            column: found.len(),
            is_bytes: node.get_physical_type() == Physical::BYTE_ARRAY,
            is_text,
            path: steps,
        });
        return;
    }
    let is_list = info.converted_type() == ConvertedType::LIST
        || matches!(info.logical_type_ref(), Some(LogicalType::List));
    let inside = match around {
        _ if is_list => Around::List,
        // Three levels: list, repeated group, element. A repeated struct of several fields is the element itself.
        Around::List if node.get_fields().len() == 1 => Around::Items,
        _ => Around::Struct,
    };
    for field in node.get_fields() {
        walk(field, steps.clone(), inside, found);
    }
}

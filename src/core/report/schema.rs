//! What a report looks like, as data: the schema of Zuul's documentation, and what Zuul (14.3) sends beyond it.

/// What a value has to be. Null is fine everywhere but in [`Shape::Name`]: Zuul writes it for what it doesn't know.
pub(super) enum Shape {
    /// Whatever.
    Anything,
    /// A string that may not be empty or null.
    Name,
    /// A string.
    Text,
    /// A string, or a number: change numbers are either, depending on the code review system.
    TextOrNumber,
    /// Seconds since 1970, as a number or in quotes.
    Time,
    /// True or false.
    Flag,
    /// A list.
    List(&'static Shape),
    /// An object.
    Object(&'static Object),
}

impl Shape {
    /// In the words of a message.
    pub(super) fn expected(&self) -> &'static str {
        match self {
            Shape::Anything => "a value",
            Shape::Name => "a non-empty string",
            Shape::Text => "a string",
            Shape::TextOrNumber => "a string or a number",
            Shape::Time => "seconds since 1970 as a number",
            Shape::Flag => "true or false",
            Shape::List(_) => "a list",
            Shape::Object(_) => "an object",
        }
    }
}

/// What an object has to be.
pub(super) struct Object {
    /// The keys that the schema names.
    pub fields: &'static [Field],
    /// Whether the plain values of all keys, also of unnamed ones, are kept: topics may refer to them.
    pub is_change: bool,
}

/// One key of an object.
pub(super) struct Field {
    pub key: &'static str,
    pub shape: Shape,
    pub keep: Keep,
}

/// What is kept of a field.
#[derive(Clone, Copy)]
pub(super) enum Keep {
    Nothing,
    /// The value, as text.
    Named(Slot),
    /// Where in the payload the value stands.
    Place,
}

/// The fields of a report that routing and topics ask for.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    Action,
    Tenant,
    Pipeline,
    Project,
    Branch,
    Change,
    Patchset,
    Ref,
}

/// How many [`Slot`]s there are.
pub(super) const SLOTS: usize = Slot::Ref as usize + 1;

impl Slot {
    /// The field's key.
    pub(super) fn key(self) -> &'static str {
        match self {
            Slot::Action => "action",
            Slot::Tenant => "tenant",
            Slot::Pipeline => "pipeline",
            Slot::Project => "project",
            Slot::Branch => "branch",
            Slot::Change => "change",
            Slot::Patchset => "patchset",
            Slot::Ref => "ref",
        }
    }
}

const fn field(key: &'static str, shape: Shape) -> Field {
    Field { key, shape, keep: Keep::Nothing }
}

const fn kept(key: &'static str, shape: Shape, slot: Slot) -> Field {
    Field { key, shape, keep: Keep::Named(slot) }
}

/// The whole report.
pub(super) static REPORT: Shape = Shape::Object(&Object {
    fields: &[
        kept("action", Shape::Name, Slot::Action),
        kept("tenant", Shape::Name, Slot::Tenant),
        kept("pipeline", Shape::Name, Slot::Pipeline),
        kept("project", Shape::Text, Slot::Project),
        kept("branch", Shape::Text, Slot::Branch),
        kept("change", Shape::TextOrNumber, Slot::Change),
        kept("patchset", Shape::TextOrNumber, Slot::Patchset),
        kept("ref", Shape::Text, Slot::Ref),
        field("change_url", Shape::Text),
        field("message", Shape::Text),
        field("zuul_ref", Shape::Text),
        field("uuid", Shape::Text),
        field("timestamp", Shape::Time),
        field("tenant_web_root", Shape::Text),
        field("queue", Shape::Text),
        field("commit_id", Shape::Text),
        field("owner", Shape::Text),
        field("trigger_time", Shape::Time),
        field("enqueue_time", Shape::Time),
        field("zuul_event_id", Shape::Text),
        field("changes", Shape::List(&Shape::Object(&CHANGE))),
        field("buildset", Shape::Object(&BUILDSET)),
    ],
    is_change: false,
});

const CHANGE_FIELDS: &[Field] = &[
    field("project", Shape::Text),
    field("branch", Shape::Text),
    field("change_url", Shape::Text),
    field("change", Shape::TextOrNumber),
    field("patchset", Shape::TextOrNumber),
    field("commit_id", Shape::Text),
    field("owner", Shape::Text),
    field("ref", Shape::Text),
    field("topic", Shape::Text),
];

static CHANGE: Object = Object { fields: CHANGE_FIELDS, is_change: true };

/// The change that a build was for: like an entry of `changes`, but no topic refers to it.
static CHANGE_OF_BUILD: Object = Object { fields: CHANGE_FIELDS, is_change: false };

static BUILDSET: Object = Object {
    fields: &[
        field("uuid", Shape::Text),
        field("result", Shape::Text),
        field("builds", Shape::List(&Shape::Object(&BUILD))),
        field("retry_builds", Shape::List(&Shape::Object(&BUILD))),
    ],
    is_change: false,
};

static MAPPING: Object = Object { fields: &[], is_change: false };

static BUILD: Object = Object {
    fields: &[
        field("job_name", Shape::Text),
        field("voting", Shape::Flag),
        field("uuid", Shape::Text),
        field("execute_time", Shape::Time),
        field("start_time", Shape::Time),
        field("end_time", Shape::Time),
        field("log_url", Shape::Text),
        field("result", Shape::Text),
        field("web_url", Shape::Text),
        field("job_uuid", Shape::Text),
        field("change", Shape::Object(&CHANGE_OF_BUILD)),
        field("dependencies", Shape::List(&Shape::Text)),
        field("job_dependencies", Shape::Object(&MAPPING)),
        field("artifacts", Shape::List(&Shape::Object(&MAPPING))),
        field("events", Shape::List(&Shape::Object(&MAPPING))),
        Field { key: "returned_data", shape: Shape::Anything, keep: Keep::Place },
    ],
    is_change: false,
};

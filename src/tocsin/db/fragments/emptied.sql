-- Of an update of these events: void ones lose their words, subjects and keys.
data = case when event.is_void then '{}' else e.data end, params = case when event.is_void then '{}' else e.params end,
    subjects = case when event.is_void then '{}' else e.subjects end, key = case when event.is_void then null else e.key end

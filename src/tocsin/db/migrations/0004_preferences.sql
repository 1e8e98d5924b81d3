-- What users chose to be told of, and when.
create table preferences (
    user_id int primary key references users on delete cascade,
    chosen text not null          -- JSON: only what they chose; all else is as the operator and the catalogue have it
);

-- The table of Laravel's `notifications` migration as PostgreSQL gets it, and the team that a notification goes to.
create schema laravel;
create table laravel.notifications (
    id uuid primary key,
    type varchar(255) not null,
    notifiable_type varchar(255) not null,
    notifiable_id bigint not null,
    data text not null,
    read_at timestamp(0),
    created_at timestamp(0),
    updated_at timestamp(0)
);
create index notifications_notifiable_type_notifiable_id_index on laravel.notifications (notifiable_type, notifiable_id);
create table laravel.team_user (team_id bigint not null, user_id bigint not null, primary key (team_id, user_id));

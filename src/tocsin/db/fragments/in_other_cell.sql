-- Whether the user @user is or was in one of the companies @companies, which other databases have.
@companies::int[] <> '{}' and coalesce(
    coalesce(
        (select u.company_id from users u where u.id = @user),
        (select m.company_id from moved_ids m where m.kind = 'user' and m.id = @user)
    ) = any(@companies),
    false
)

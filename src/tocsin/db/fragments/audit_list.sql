-- The latest entries before the entry $2, from $3 to $4, of all companies or of one (@of).
select * from audit_entries
where @of and happened_at >= coalesce($3::timestamptz, '-infinity')
  and happened_at < coalesce($4::timestamptz, 'infinity')
  and (happened_at, id) < (
      case when $2::uuid is null then 'infinity' else (select happened_at from audit_entries where id = $2) end,
      coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  )
order by happened_at desc, id desc
limit $8

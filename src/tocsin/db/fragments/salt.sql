coalesce((select t.salt from timelines t where t.id = 1), 0) as salt

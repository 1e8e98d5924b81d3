select table_name, count(*) as n, sum(hashtextextended(row, 0))::text as mark, null::uuid as event_id
from row group by table_name order by table_name collate "C"

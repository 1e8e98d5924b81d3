-- Whether the dead letter `d` is that of a company; of all companies, if that is null.
(
    @company::int is null
    or coalesce((select p.company_id from posted p where p.id = d.id), (select e.company_id from events e where e.id = d.id)) = @company
)

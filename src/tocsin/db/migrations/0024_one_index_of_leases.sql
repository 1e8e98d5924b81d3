-- One index of leased deliveries instead of two. With both, a planner that expects hardly any leased row may look for a
-- device's through the other one, and read all that are under way for each delivery that it claims.
drop index deliveries_leased;

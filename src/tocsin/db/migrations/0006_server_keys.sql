-- Which of our keys a browser's subscription was found to be made with; null: the one that we had when it was new.
alter table devices add column server_key text;

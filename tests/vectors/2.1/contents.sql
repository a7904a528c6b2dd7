-- Everything that source.sql put into the database, as text that does not depend on the server's major.
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';
SET search_path = 'public';
\echo == customers
SELECT id, quote_nullable(name), tags::text, born, photo, name_upper FROM customers ORDER BY id;
\echo == order
SELECT * FROM "Sales & more"."order" ORDER BY id;
\echo == events
SELECT tableoid::regclass, * FROM events ORDER BY id;
\echo == big
SELECT count(*), md5(string_agg(id || line, ',' ORDER BY id)) FROM big;
\echo == hollow
SELECT count(*) FROM hollow;
\echo == guarded
SELECT * FROM guarded ORDER BY id;
\echo == views
SELECT * FROM spent ORDER BY name COLLATE "C";
SELECT * FROM by_year ORDER BY year;
\echo == sequences
SELECT last_value, is_called FROM tickets;
SELECT last_value, is_called FROM customers_id_seq;
SELECT last_value, is_called FROM "Sales & more".order_id_seq;
\echo == large objects
SELECT lo_get(4711);
\echo == objects
SELECT c.relkind, c.oid::regclass FROM pg_class c
    WHERE c.relnamespace IN ('public'::regnamespace, '"Sales & more"'::regnamespace)
    ORDER BY c.relkind, c.oid::regclass::text COLLATE "C";
SELECT conrelid::regclass, contype, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace IN ('public'::regnamespace, '"Sales & more"'::regnamespace) AND contype <> 'n'
    ORDER BY conrelid::regclass::text COLLATE "C", conname COLLATE "C";
SELECT schemaname, tablename, policyname, roles, cmd, qual FROM pg_policies;
SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE NOT tgisinternal;
SELECT extname FROM pg_extension ORDER BY 1;
SELECT obj_description('"Sales & more"."order"'::regclass);

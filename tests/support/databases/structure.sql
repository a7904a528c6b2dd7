-- Every kind of object that a database of its own may hold, with some rows where rows go.
CREATE SCHEMA extra;
COMMENT ON SCHEMA extra IS 'for what does not belong in public';
CREATE EXTENSION hstore WITH SCHEMA extra;
CREATE EXTENSION pg_trgm;
CREATE EXTENSION ltree;
CREATE EXTENSION citext;
CREATE EXTENSION btree_gist;
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION unaccent;

CREATE COLLATION extra.bytewise (provider = libc, locale = 'C');

-- Partitions: range, list and hash, one of them partitioned again, one of them for the rest.
CREATE TABLE events (id bigint NOT NULL, at date NOT NULL, kind text NOT NULL, note text) PARTITION BY RANGE (at);
CREATE TABLE events_2023 PARTITION OF events FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE events_2024 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') PARTITION BY LIST (kind);
CREATE TABLE events_2024_click PARTITION OF events_2024 FOR VALUES IN ('click', 'tap');
CREATE TABLE extra.events_2024_other PARTITION OF events_2024 DEFAULT PARTITION BY HASH (id);
CREATE TABLE extra.events_2024_other_0 PARTITION OF extra.events_2024_other FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE extra.events_2024_other_1 PARTITION OF extra.events_2024_other FOR VALUES WITH (MODULUS 2, REMAINDER 1);
-- Columns in an order of its own, then attached.
CREATE TABLE events_rest (note text, kind text NOT NULL, at date NOT NULL, id bigint NOT NULL);
ALTER TABLE events ATTACH PARTITION events_rest DEFAULT;
ALTER TABLE events ADD PRIMARY KEY (id, at, kind);
CREATE INDEX events_kind ON events (kind, at DESC NULLS LAST) INCLUDE (note);
INSERT INTO events
SELECT n, date '2022-12-01' + n, (ARRAY['click', 'tap', 'view', 'scroll'])[1 + n % 4], 'note ' || n
FROM generate_series(1, 1000) AS n;

-- Inheritance: a parent with rows of its own.
CREATE TABLE cities (name text PRIMARY KEY, people integer CHECK (people >= 0));
CREATE TABLE capitals (state char(2) UNIQUE) INHERITS (cities);
CREATE TABLE extra.old_capitals (until date) INHERITS (capitals);
INSERT INTO cities VALUES ('Graz', 300000), ('Linz', 210000);
INSERT INTO capitals VALUES ('Wien', 2000000, 'AT');
INSERT INTO extra.old_capitals VALUES ('Bonn', 330000, 'DE', '1990-10-03');

CREATE SEQUENCE odd INCREMENT BY -7 MINVALUE -1000 MAXVALUE 10 START WITH 3 CYCLE CACHE 5;
SELECT nextval('odd') FROM generate_series(1, 4);
CREATE SEQUENCE untouched AS smallint START 5;
CREATE SEQUENCE huge MAXVALUE 9223372036854775807;
SELECT setval('huge', 9223372036854775806);

CREATE TABLE people (
    id integer GENERATED ALWAYS AS IDENTITY (START WITH 10 INCREMENT BY 5) PRIMARY KEY,
    name citext NOT NULL UNIQUE,
    born date,
    attributes extra.hstore,
    place ltree,
    initial text GENERATED ALWAYS AS (upper(left(name::text, 1))) STORED,
    serial integer DEFAULT nextval('odd'),
    byte_order text COLLATE extra.bytewise,
    manager integer REFERENCES people DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO people (name, born, attributes, place, byte_order, manager)
SELECT 'Person ' || n, date '1970-01-01' + n * 100, extra.hstore('k', 'v"=>' || n), ('top.p' || n)::ltree,
       md5(n::text), 10
FROM generate_series(1, 50) AS n;
ALTER TABLE people ALTER COLUMN born SET STATISTICS 500;
ALTER TABLE people DROP COLUMN serial;
ALTER TABLE people ADD COLUMN added text DEFAULT 'later' NOT NULL;
CREATE INDEX people_trigrams ON people USING gin ((name::text) gin_trgm_ops);
CREATE STATISTICS people_statistics (ndistinct, dependencies) ON born, added FROM people;
ALTER TABLE people CLUSTER ON people_pkey;
COMMENT ON COLUMN people.name IS 'case does not matter';
COMMENT ON INDEX people_trigrams IS 'for similarity';

-- Foreign keys in a circle.
CREATE TABLE chicken (id integer PRIMARY KEY, egg integer);
CREATE TABLE egg (id integer PRIMARY KEY, chicken integer REFERENCES chicken DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE chicken ADD CONSTRAINT from_egg FOREIGN KEY (egg) REFERENCES egg ON DELETE SET NULL DEFERRABLE;
BEGIN;
INSERT INTO egg VALUES (1, 1);
INSERT INTO chicken VALUES (1, 1);
COMMIT;

CREATE TABLE bookings (
    room integer, during tstzrange,
    CONSTRAINT no_overlap EXCLUDE USING gist (room WITH =, during WITH &&)
);
INSERT INTO bookings SELECT 1, tstzrange(d, d + '1 hour') FROM generate_series(timestamptz '2024-01-01 00:00+00', '2024-01-02 00:00+00', '2 hours') AS d;
ALTER TABLE bookings ADD CONSTRAINT small_rooms CHECK (room < 100) NOT VALID;

CREATE UNLOGGED TABLE scratch (id integer PRIMARY KEY, note text) WITH (fillfactor = 70, autovacuum_enabled = off);
INSERT INTO scratch SELECT n, 'unlogged' FROM generate_series(1, 10) AS n;

CREATE VIEW adults AS SELECT id, name, born FROM people WHERE born < '2000-01-01' WITH LOCAL CHECK OPTION;
CREATE VIEW extra.adult_names WITH (security_barrier) AS SELECT name FROM adults;
CREATE RECURSIVE VIEW countdown (n) AS VALUES (5) UNION ALL SELECT n - 1 FROM countdown WHERE n > 0;
CREATE MATERIALIZED VIEW per_kind AS SELECT kind, count(*) AS n FROM events GROUP BY kind;
CREATE UNIQUE INDEX ON per_kind (kind);
CREATE MATERIALIZED VIEW extra.on_top AS SELECT sum(n) AS total FROM per_kind;
CREATE MATERIALIZED VIEW not_yet AS SELECT * FROM per_kind WITH NO DATA;

CREATE FUNCTION extra.double(integer, OUT result integer) LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS 'SELECT $1 * 2';
CREATE FUNCTION variadic_sum(VARIADIC numbers integer[] DEFAULT '{}') RETURNS bigint LANGUAGE sql STABLE AS 'SELECT sum(n) FROM unnest(numbers) AS n';
CREATE FUNCTION standard_body(a integer) RETURNS integer LANGUAGE sql RETURN a + 1;
CREATE FUNCTION people_named(text) RETURNS SETOF people LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS
$$BEGIN RETURN QUERY SELECT * FROM people WHERE name = $1; END$$;
CREATE PROCEDURE tidy(INOUT n integer) LANGUAGE plpgsql AS $$BEGIN n := n + 1; END$$;
CREATE AGGREGATE product(numeric) (SFUNC = numeric_mul, STYPE = numeric, INITCOND = '1');
CREATE FUNCTION text_plus(text, text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1 || ''+'' || $2';
CREATE OPERATOR +|+ (LEFTARG = text, RIGHTARG = text, FUNCTION = text_plus);
CREATE TYPE celsius AS (degrees numeric);
CREATE FUNCTION to_celsius(numeric) RETURNS celsius LANGUAGE sql IMMUTABLE AS 'SELECT ROW($1)::celsius';
CREATE CAST (numeric AS celsius) WITH FUNCTION to_celsius(numeric) AS ASSIGNMENT;
CREATE DOMAIN percentage AS integer CHECK (VALUE BETWEEN 0 AND 100);
CREATE TEXT SEARCH CONFIGURATION plain_words (COPY = simple);
CREATE OPERATOR CLASS extra.reversed FOR TYPE integer USING btree AS
    OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 btint4cmp(integer, integer);

-- Triggers that would change rows if they fired while the rows come back.
CREATE TABLE audited (id integer PRIMARY KEY, value text, changed integer DEFAULT 0);
CREATE TABLE audit (id serial PRIMARY KEY, what text);
INSERT INTO audited SELECT n, 'value ' || n FROM generate_series(1, 20) AS n;
CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit (what) VALUES (TG_OP);
    NEW.changed := NEW.changed + 1;
    RETURN NEW;
END$$;
CREATE TRIGGER recorded BEFORE INSERT OR UPDATE ON audited FOR EACH ROW EXECUTE FUNCTION record();
CREATE CONSTRAINT TRIGGER recorded_late AFTER DELETE ON audited DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION record();
CREATE TRIGGER sleeping BEFORE UPDATE OF value ON audited FOR EACH ROW WHEN (OLD.value IS DISTINCT FROM NEW.value) EXECUTE FUNCTION record();
ALTER TABLE audited DISABLE TRIGGER sleeping;
ALTER TABLE audited ENABLE ALWAYS TRIGGER recorded;
CREATE RULE no_deletion AS ON DELETE TO audit DO INSTEAD NOTHING;

ALTER TABLE audited ENABLE ROW LEVEL SECURITY;
ALTER TABLE audited FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON audited AS RESTRICTIVE FOR SELECT USING (id > 0);
CREATE POLICY new_rows ON audited FOR INSERT WITH CHECK (value <> '');

CREATE PUBLICATION some_tables FOR TABLE people, audited WITH (publish = 'insert, update');
CREATE PUBLICATION everything FOR ALL TABLES;
ALTER TABLE audit REPLICA IDENTITY FULL;

-- Nobody answers there, and a dump must not ask.
CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1', dbname 'none');
CREATE FOREIGN TABLE remote (id integer OPTIONS (column_name 'key'), value text) SERVER elsewhere OPTIONS (schema_name 'x');

CREATE FUNCTION notice_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE DEBUG '%', tg_tag; END$$;
CREATE EVENT TRIGGER watch_ddl ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION notice_ddl();

-- The database that the vectors are backups of: a little of everything that an archive can hold.
CREATE EXTENSION hstore;
CREATE SCHEMA "Sales & more";

CREATE TABLE customers (
    id integer GENERATED ALWAYS AS IDENTITY (START 100) PRIMARY KEY,
    name text NOT NULL UNIQUE,
    tags hstore,
    born date,
    photo bytea,
    name_upper text GENERATED ALWAYS AS (upper(name)) STORED
);
INSERT INTO customers (name, tags, born, photo) VALUES
    ('Ada', 'vip => 1, "a b" => NULL', '1815-12-10', '\x00ff5c2e0a'),
    (E'tab\tnew\nline \\. \\N', NULL, 'infinity', ''),
    ('Zoë 😀', '', NULL, NULL);

CREATE TABLE "Sales & more"."order" (
    id bigserial PRIMARY KEY,
    customer integer NOT NULL REFERENCES customers,
    total numeric(12, 2) CHECK (total >= 0),
    weight double precision,
    placed timestamptz NOT NULL
);
INSERT INTO "Sales & more"."order" (customer, total, weight, placed)
    SELECT 100 + n % 3, n * 1.11, 1.0 / n, '2026-01-01 00:00:00+00'::timestamptz + n * interval '1 hour'
    FROM generate_series(1, 200) n;
CREATE INDEX order_by_customer ON "Sales & more"."order" (customer) WHERE total > 10;
COMMENT ON TABLE "Sales & more"."order" IS 'It''s a "comment"';

CREATE TABLE events (id integer, at date NOT NULL, what text, PRIMARY KEY (id, at))
    PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE events_rest PARTITION OF events DEFAULT;
INSERT INTO events SELECT n, '2025-12-01'::date + n, repeat('event ', n % 4)
    FROM generate_series(1, 60) n;

-- More than a megabyte on disk, and little when compressed: read by a session of its own.
CREATE TABLE big (id integer PRIMARY KEY, line text);
ALTER TABLE big ALTER line SET STORAGE PLAIN;
INSERT INTO big SELECT n, repeat(chr(97 + n % 26), 700) FROM generate_series(1, 2000) n;

CREATE TABLE hollow (id integer);
CREATE TABLE guarded (id integer PRIMARY KEY, note text);
INSERT INTO guarded VALUES (1, 'one'), (2, 'two');
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON guarded FOR SELECT TO vectors_reader USING (id = 1);

CREATE FUNCTION stamped() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.note := NEW.note || ''!''; RETURN NEW; END';
CREATE TRIGGER stamp BEFORE UPDATE ON guarded FOR EACH ROW EXECUTE FUNCTION stamped();

CREATE VIEW spent AS
    SELECT c.name, sum(o.total) AS total
    FROM customers c JOIN "Sales & more"."order" o ON o.customer = c.id GROUP BY c.name;
CREATE MATERIALIZED VIEW by_year AS
    SELECT extract(year FROM at)::integer AS year, count(*) AS events FROM events GROUP BY 1;
CREATE UNIQUE INDEX by_year_year ON by_year (year);

CREATE SEQUENCE tickets INCREMENT 5;
SELECT setval('tickets', 35);
SELECT lo_from_bytea(4711, '\x00112233ff');

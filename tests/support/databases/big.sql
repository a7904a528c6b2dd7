-- A shop with a history, of any size: a plain dump has about `scale` times 950 MB.
--
-- A mix as databases have it: many narrow rows and few wide ones, numbers, text, JSON and
-- bytes that do not compress. Everything is derived from row numbers, so that two runs agree.
CREATE TABLE customers (
    id bigint PRIMARY KEY, reference uuid NOT NULL, name text NOT NULL, email text NOT NULL,
    address text, balance numeric(12, 2) NOT NULL, created_at timestamptz NOT NULL
);
INSERT INTO customers
SELECT n, md5('customer' || n)::uuid, 'Customer ' || initcap(left(md5(n::text), 7)),
       'customer' || n || '@example.org', (n % 300) || ' ' || initcap(translate(md5('street' || n), '0123456789', 'aeiouaeiou')) || ' Street',
       (n * 7919 % 1000000) / 100.0, timestamptz '2015-01-01 00:00+00' + n * interval '97 seconds'
FROM generate_series(1, (400000 * :scale)::bigint) AS n;

CREATE TABLE orders (
    id bigint NOT NULL, customer_id bigint NOT NULL, status text NOT NULL,
    total numeric(12, 2) NOT NULL, tax numeric(12, 4), placed_at timestamptz NOT NULL, shipped_on date
);
INSERT INTO orders
SELECT n, 1 + n * 31 % (400000 * :scale)::bigint, (ARRAY['new', 'paid', 'shipped', 'returned'])[1 + n % 4],
       (n * 104729 % 5000000) / 100.0, (n * 104729 % 5000000) / 526.3, timestamptz '2018-01-01 00:00+00' + n * interval '61 seconds',
       CASE WHEN n % 4 > 1 THEN date '2018-01-02' + (n / 1416)::integer % 3000 END
FROM generate_series(1, (3000000 * :scale)::bigint) AS n;

CREATE TABLE events (id bigint NOT NULL, payload jsonb NOT NULL);
INSERT INTO events
SELECT n, jsonb_build_object(
    'kind', (ARRAY['view', 'click', 'search'])[1 + n % 3], 'session', md5((n / 20)::text), 'page', '/product/' || n * 7919 % 50000,
    'seconds', n % 600, 'tags', jsonb_build_array('a' || n % 10, 'b' || n % 100))
FROM generate_series(1, (1200000 * :scale)::bigint) AS n;

CREATE TABLE documents (id bigint NOT NULL, title text NOT NULL, body text NOT NULL);
INSERT INTO documents
SELECT n, 'Document ' || n,
       (SELECT string_agg(translate(md5(n || '/' || k), '0123456789', ' aeiou nst'), E'.\n' ORDER BY k) FROM generate_series(1, 60 + n % 60) AS k)
FROM generate_series(1, (60000 * :scale)::bigint) AS n;

CREATE TABLE blobs (id bigint NOT NULL, content bytea NOT NULL);
INSERT INTO blobs
SELECT n, (SELECT string_agg(sha512((n || '/' || k)::bytea), '' ORDER BY k) FROM generate_series(1, 160) AS k)
FROM generate_series(1, (9300 * :scale)::bigint) AS n;

CREATE TABLE measurements (sensor integer NOT NULL, at timestamptz NOT NULL, value double precision, quality real);
INSERT INTO measurements
SELECT n % 500, timestamptz '2024-01-01 00:00+00' + n * interval '0.5 seconds', 20 + 10 * sin(n / 1000.0) + (n * 7919 % 1000) / 3000.0, (n % 100) / 99.0
FROM generate_series(1, (2500000 * :scale)::bigint) AS n;

ALTER TABLE orders ADD PRIMARY KEY (id);
ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers;
CREATE INDEX ON orders (placed_at);
ALTER TABLE events ADD PRIMARY KEY (id);
CREATE INDEX ON measurements (sensor, at);
ANALYZE;

-- Large objects: empty, around the size of their 2 kB pages, with a hole, above one megabyte.
SELECT lo_create(900001);
SELECT lo_from_bytea(900002, '\x00');
SELECT lo_from_bytea(900003, decode(repeat('5c2e0a', 683), 'hex'));
SELECT lo_from_bytea(900004, decode(repeat('27', 2048), 'hex'));
SELECT lo_from_bytea(
    900005,
    (SELECT string_agg(decode(md5(n::text), 'hex'), '' ORDER BY n) FROM generate_series(1, 100000) AS n)
);
SELECT lo_from_bytea(
    900006, (SELECT string_agg(set_byte('\x00', 0, n), '' ORDER BY n) FROM generate_series(0, 255) AS n)
);
SELECT lo_create(900007);
SELECT lo_put(900007, 300000, 'after a hole');
COMMENT ON LARGE OBJECT 900001 IS 'nothing in here';
COMMENT ON LARGE OBJECT 900005 IS E'it''s large;\nSELECT pg_catalog.lo_close(0);\n\\.\n';

CREATE TABLE attachments (id integer PRIMARY KEY, name text, content oid);
INSERT INTO attachments SELECT n, 'attachment ' || n, 900000 + n FROM generate_series(1, 7) AS n;
-- Rows that several sessions read while another one reads the large objects.
CREATE TABLE pages (id integer PRIMARY KEY, line text);
INSERT INTO pages SELECT n, repeat(md5(n::text), 3) FROM generate_series(1, 6000) AS n;

-- Bytes: every single one, every pair, long values, and empty next to NULL.
CREATE TABLE single_bytes (byte integer PRIMARY KEY, value bytea NOT NULL);
INSERT INTO single_bytes SELECT n, set_byte('\x00', 0, n) FROM generate_series(0, 255) AS n;

CREATE TABLE pairs (value bytea);
INSERT INTO pairs
SELECT set_byte(set_byte('\x0000', 0, a), 1, b)
FROM generate_series(0, 255) AS a, generate_series(0, 255) AS b;

CREATE TABLE long_values (id integer PRIMARY KEY, value bytea);
INSERT INTO long_values VALUES
    (1, ''), (2, NULL), (3, decode(repeat('00', 100000), 'hex')), (4, decode(repeat('5c', 99999), 'hex'));
INSERT INTO long_values
SELECT 5, string_agg(decode(md5(n::text), 'hex'), '' ORDER BY n) FROM generate_series(1, 130000) AS n;

-- What `pg_dump --clean --if-exists` cannot carry into an empty database.
--
-- Its drop commands fail there although they say IF EXISTS, so that psql with
-- ON_ERROR_STOP stops: that is pg_dump's own, and the reason why a restore into an empty
-- database must be able to leave the drops out. Each case by itself does it.

-- ALTER DOMAIN has no IF EXISTS for the domain: a constraint that is dumped apart from its
-- domain, as one that is NOT VALID is, is also dropped apart from it.
CREATE DOMAIN short_text AS text;
CREATE TABLE short_texts (value short_text);
INSERT INTO short_texts VALUES ('far too long for what comes next');
ALTER DOMAIN short_text ADD CONSTRAINT is_short CHECK (length(VALUE) < 10) NOT VALID;

-- A view that groups by a primary key depends on the key and not just on the table, so
-- pg_dump replaces it by a dummy before it drops the key; there CREATE OR REPLACE VIEW wants the schema.
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id integer PRIMARY KEY, customer text);
CREATE TABLE shop.items (order_id integer, price numeric);
INSERT INTO shop.orders VALUES (1, 'Ada'), (2, 'Grace');
INSERT INTO shop.items VALUES (1, 2.50), (1, 4), (2, 1);
CREATE VIEW shop.totals AS
SELECT o.id, o.customer, sum(i.price) AS total FROM shop.orders AS o
JOIN shop.items AS i ON i.order_id = o.id GROUP BY o.id;

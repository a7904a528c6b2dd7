-- Names that have to be quoted, and some that quoting alone does not save.
CREATE SCHEMA "Upper Case";
CREATE SCHEMA "sch.ema";
CREATE SCHEMA "ünï😀";

CREATE TABLE "Upper Case"."Table" ("ID" integer PRIMARY KEY, "select" text, "a b" text);
INSERT INTO "Upper Case"."Table" VALUES (1, 'x', 'y');
CREATE TABLE "FROM stdin;" ("COPY" integer, ") FROM stdin;" text);
INSERT INTO "FROM stdin;" VALUES (1, '\.'), (2, NULL);
CREATE TABLE "sch.ema"."ta.ble" (".." integer);
INSERT INTO "sch.ema"."ta.ble" VALUES (1);
CREATE TABLE "sch.ema"."qu""ote" ("c""ol" integer, "it's" text);
INSERT INTO "sch.ema"."qu""ote" VALUES (1, '"');
CREATE TABLE "back\slash" ("\." integer, "\N" text, "\" text);
INSERT INTO "back\slash" VALUES (1, '\', '\\');
CREATE TABLE "per%cent %s %d %%" ("%I" integer);
INSERT INTO "per%cent %s %d %%" VALUES (1);
CREATE TABLE "new
line" ("col
umn" integer);
INSERT INTO "new
line" VALUES (1), (2);
CREATE TABLE "
\." (value integer);
INSERT INTO "
\." VALUES (1);
CREATE TABLE "fake
COPY public.fake (a) FROM stdin;" (a integer);
INSERT INTO "fake
COPY public.fake (a) FROM stdin;" VALUES (1), (2), (3);
CREATE TABLE "ünï😀"."日本語" ("ключ" integer PRIMARY KEY, "😀" text);
INSERT INTO "ünï😀"."日本語" VALUES (1, '😀');
CREATE TABLE " leading and trailing " ("	tab" integer);
INSERT INTO " leading and trailing " VALUES (1);
CREATE TABLE "$$" ("$1" integer, "*" integer, "?" integer, "a:b" integer, "{x}" integer);
INSERT INTO "$$" VALUES (1, 2, 3, 4, 5);
CREATE TABLE "-- comment" ("/* no" integer);
INSERT INTO "-- comment" VALUES (1);
CREATE TABLE "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" ("bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb" integer);
INSERT INTO "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" VALUES (1);
-- The same name with another case, and in another schema.
CREATE TABLE "TABLE" (a integer);
CREATE TABLE "table" (a integer);
CREATE TABLE "Upper Case"."table" (a integer);
INSERT INTO "TABLE" VALUES (1);
INSERT INTO "table" VALUES (2);
INSERT INTO "Upper Case"."table" VALUES (3);
CREATE SEQUENCE "Upper Case"."Seq ""uence's";
SELECT nextval('"Upper Case"."Seq ""uence''s"');
CREATE INDEX "in dex ""x""" ON "Upper Case"."Table" ("a b");
CREATE FUNCTION "Upper Case"."fun ction;"("arg ument" integer) RETURNS integer LANGUAGE sql AS 'SELECT $1';
CREATE VIEW "vi'ew" AS SELECT "ID" AS "i""d" FROM "Upper Case"."Table";
CREATE TYPE "Upper Case"."Ty pe" AS ENUM ('A', 'a');
CREATE TABLE typed ("Ty pe" "Upper Case"."Ty pe"[]);
INSERT INTO typed VALUES ('{A,a}');

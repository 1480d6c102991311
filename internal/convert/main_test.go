package convert

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// versions runs a test on the oldest and the newest Postgres that are supported.
func versions(t *testing.T, test func(t *testing.T, db string)) {
	t.Helper()
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) { test(t, testkit.Postgres(t, version)) })
	}
}

// replacedSchema is the replaced system's, as its migrations leave it.
const replacedSchema = `
	CREATE TABLE audit_log (
		id serial PRIMARY KEY, timestamp timestamptz NOT NULL, ttl varchar(255), principal_id varchar(255), organization_id varchar(255), action varchar(255) NOT NULL,
		target_resource_type varchar(255), target_resource_id varchar(255), status varchar(20) NOT NULL, outcome_description text, hash varchar(64),
		hash_algorithm varchar(50) DEFAULT 'SHA-256', event_version varchar(20) DEFAULT '1.0', correlation_id varchar(255), data_classification varchar(20) DEFAULT 'INTERNAL',
		retention_policy varchar(50) DEFAULT 'standard', processing_latency integer, archived_at timestamptz, details jsonb);
	CREATE INDEX audit_log_timestamp_idx ON audit_log (timestamp);
	CREATE INDEX audit_log_principal_id_idx ON audit_log (principal_id);
	CREATE INDEX audit_log_status_idx ON audit_log (status);
	CREATE INDEX audit_log_timestamp_status_idx ON audit_log (timestamp, status);
	CREATE TABLE audit_retention_policy (
		id serial PRIMARY KEY, policy_name varchar(255) NOT NULL UNIQUE, retention_days integer NOT NULL, archive_after_days integer, delete_after_days integer,
		data_classification varchar(20) NOT NULL, description text, is_active boolean NOT NULL DEFAULT true, created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now());
	INSERT INTO audit_retention_policy (id, policy_name, retention_days, data_classification) VALUES (3, 'standard', 4000, 'INTERNAL'), (7, 'our own', 30, 'PUBLIC');
	SELECT setval('audit_retention_policy_id_seq', 9);
	CREATE TABLE audit_integrity_log (
		id serial PRIMARY KEY, audit_log_id integer NOT NULL REFERENCES audit_log (id), verification_timestamp timestamptz NOT NULL DEFAULT now(), verification_status varchar(20) NOT NULL,
		verification_details jsonb, verified_by varchar(255), hash_verified varchar(64), expected_hash varchar(64));`

// replacedRows are some of all kinds: gaps in the ids, the ends of years and of a leap day, months without any, timestamps that many share, microseconds,
// nulls, unknown policies, characters beyond ASCII.
const replacedRows = `
	INSERT INTO audit_log (timestamp, action, status) VALUES
		('2014-12-31 23:59:59.999999+00', 'last.of.year', 'success'), ('2015-01-01 00:00:00+00', 'first.of.year', 'failure'),
		('2016-02-29 23:59:59.999999+00', 'leap.day', 'attempt'), ('2016-03-01 00:00:00+00', 'after', 'success'), ('1970-01-01 00:00:00+00', 'the first', 'success');
	SELECT setval('audit_log_id_seq', 1000);
	INSERT INTO audit_log (timestamp, principal_id, organization_id, action, status, outcome_description, hash, retention_policy, processing_latency, archived_at, details, data_classification)
	SELECT CASE WHEN i % 5 = 0 THEN '2024-05-17 10:00:00.123456+00' ELSE date_trunc('month', now()) - make_interval(months => i % 8) - make_interval(secs => i * 60.000001) END,
	       nullif('usér-' || i % 7, 'usér-3'), 'org 机构 ' || i % 3, 'action.' || i % 11, (ARRAY['attempt', 'success', 'failure'])[1 + i % 3], CASE i % 4 WHEN 0 THEN E'line\nand "quotes", \\ 🏥' END,
	       encode(sha256(i::text::bytea), 'hex'), CASE i % 6 WHEN 0 THEN NULL WHEN 1 THEN 'nobody knows' WHEN 2 THEN '2555' ELSE 'standard' END, i % 100,
	       CASE i % 9 WHEN 0 THEN now() END, CASE i % 3 WHEN 0 THEN jsonb_build_object('n', i, 'text', 'ärztin', 'list', '[1, 2.50, null]'::jsonb) END, 'PHI'
	FROM generate_series(1, 2000) i;
	DELETE FROM audit_log WHERE id % 13 = 0;
	INSERT INTO audit_integrity_log (audit_log_id, verification_status, verification_details) SELECT id, 'success', '{"by": "hand"}' FROM audit_log WHERE id % 100 = 1;
	SELECT nextval('audit_log_id_seq') FROM generate_series(1, 10);`

// old makes the replaced system's tables with some rows.
func old(t *testing.T, db string) *pgx.Conn {
	t.Helper()
	conn := testkit.Connect(t, db)
	testkit.Exec(t, conn, replacedSchema+replacedRows)
	return conn
}

func options(db string) Options { return Options{URL: db, Ahead: 6, Batch: 100} }

// content is all that an audit_log holds, in the terms of the replaced system, one text a row.
func content(t *testing.T, conn *pgx.Conn, relation string) []string {
	t.Helper()
	return testkit.Column[string](t, conn, `SELECT ROW(id::bigint, timestamp AT TIME ZONE 'UTC', ttl, principal_id, organization_id, action, target_resource_type, target_resource_id, status, outcome_description, hash,
		hash_algorithm, event_version, correlation_id, data_classification, retention_policy, processing_latency, archived_at AT TIME ZONE 'UTC', details)::text FROM `+relation+` ORDER BY id, timestamp`)
}

// schema describes the schema public by the text that the golden file of package migrations is made of.
func schema(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	describe, err := os.ReadFile("../../migrations/testdata/describe.sql")
	require.NoError(t, err)
	lines := testkit.Column[string](t, conn, string(describe))
	slices.Sort(lines) // partitions have constraints of one name
	return strings.Join(lines, "\n")
}

package server_test

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/performance"
)

var update = flag.Bool("update", false, "write what is described of the performance report anew")

// TestOpenAPIReport: the performance report is described as it is made. `go test ./internal/server -run OpenAPIReport -update` writes it after a change of the report.
func TestOpenAPIReport(t *testing.T) {
	const file = "openapi.json"
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	wanted, err := json.MarshalIndent(schemaOf(reflect.TypeFor[performance.Report](), false), "   ", " ")
	require.NoError(t, err)
	described := regexp.MustCompile(`(?ms)^   "Report": (\{.*?^   \})`)
	found := described.FindSubmatch(text)
	require.NotNil(t, found)
	if *update {
		require.NoError(t, os.WriteFile(file, described.ReplaceAll(text, append([]byte(`   "Report": `), wanted...)), 0o600))
		return
	}
	require.JSONEq(t, string(wanted), string(found[1]))
}

// schemaOf is the schema of how package json writes a type.
func schemaOf(t reflect.Type, nullable bool) map[string]any {
	s := map[string]any{}
	kind := ""
	switch {
	case t == reflect.TypeFor[time.Time]():
		kind, s["format"] = "string", "date-time"
	case t.Kind() == reflect.Pointer:
		return schemaOf(t.Elem(), true)
	case t.Kind() == reflect.Interface:
		return s // anything
	case t.Kind() == reflect.Slice:
		kind, nullable, s["items"] = "array", true, schemaOf(t.Elem(), false)
	case t.Kind() == reflect.Map:
		kind, nullable, s["additionalProperties"] = "object", true, schemaOf(t.Elem(), false)
	case t.Kind() == reflect.Struct:
		properties, required := map[string]any{}, []string{}
		for _, f := range reflect.VisibleFields(t) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			properties[name] = schemaOf(f.Type, false)
			if options == "" {
				required = append(required, name)
			}
		}
		kind, s["properties"], s["required"], s["additionalProperties"] = "object", properties, required, false
	case t.Kind() == reflect.String:
		kind = "string"
	case t.Kind() == reflect.Bool:
		kind = "boolean"
	case t.Kind() == reflect.Float64:
		kind = "number"
	case t.ConvertibleTo(reflect.TypeFor[int64]()):
		kind = "integer"
	default:
		panic("a report holds a " + t.String() + ", of which this test knows no schema")
	}
	s["type"] = kind
	if nullable {
		s["type"] = []string{kind, "null"}
	}
	return s
}

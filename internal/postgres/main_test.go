package postgres_test

import (
	"testing"

	"auditsink/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

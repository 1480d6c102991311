package faults

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestGuaranteesNameTests: each test and scenario that docs/guarantees.md points to exists, and each scenario is covered there.
func TestGuaranteesNameTests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/guarantees.md")
	require.NoError(t, err)
	var names []string
	for _, group := range scenarios {
		for _, one := range group {
			names = append(names, one.name)
		}
	}
	matches := func(pattern string, among []string) (found []string) {
		for _, name := range among {
			if ok, err := path.Match(strings.ReplaceAll(pattern, "/", "-"), strings.ReplaceAll(name, "/", "-")); err == nil && ok {
				found = append(found, name)
			}
		}
		return found
	}
	covered := map[string]bool{}
	tests, folder := 0, ""
	for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(string(text), -1) {
		name := quoted[1]
		if before, after, ok := strings.Cut(name, ": Test"); ok {
			folder, name = before, "Test"+after
		}
		switch {
		case strings.HasPrefix(name, "Test"):
			tests++
			require.NotEmpty(t, matches(name, testsIn(t, folder)), "%s in %s", name, folder)
		case regexp.MustCompile(`^(kill|zombie|rebalance|postgres|kafka|network|commit|records)/`).MatchString(name):
			found := matches(name, names)
			require.NotEmpty(t, found, name)
			for _, one := range found {
				covered[one] = true
			}
		}
	}
	require.Greater(t, tests, 20)
	for _, name := range names {
		require.True(t, covered[name], "docs/guarantees.md doesn't name %s", name)
	}
}

// testsIn lists the test functions of a package.
func testsIn(t *testing.T, folder string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", folder, "*_test.go"))
	require.NoError(t, err)
	require.NotEmpty(t, files, "there is no package %s", folder)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, f := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			names = append(names, f[1])
		}
	}
	return names
}

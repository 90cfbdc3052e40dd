module birthmark

go 1.25
